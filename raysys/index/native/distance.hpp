// Distances of a query to rows of a matrix, with the widest instructions of the processor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace raysys {

using Slot = std::uint32_t;

// Eight floats at any address; without AVX the compiler splits them.
typedef float Lane __attribute__((vector_size(32), aligned(4)));

template <bool L2>
__attribute__((always_inline)) inline void accumulate(Lane& sum, const float* a, const float* b) {
    const Lane x = *reinterpret_cast<const Lane*>(a), y = *reinterpret_cast<const Lane*>(b);
    if (L2) {
        const Lane d = x - y;
        sum += d * d;
    } else {
        sum += x * y;
    }
}

// The squared Euclidean distance, or 1 - inner product.
template <bool L2>
__attribute__((always_inline)) inline float distance(const float* a, const float* b, size_t dim) {
    Lane s0{}, s1{}, s2{}, s3{};  // independent sums hide the latency of an addition
    size_t i = 0;
    for (; i + 32 <= dim; i += 32) {
        accumulate<L2>(s0, a + i, b + i);
        accumulate<L2>(s1, a + i + 8, b + i + 8);
        accumulate<L2>(s2, a + i + 16, b + i + 16);
        accumulate<L2>(s3, a + i + 24, b + i + 24);
    }
    for (; i + 8 <= dim; i += 8) accumulate<L2>(s0, a + i, b + i);
    s0 = (s0 + s1) + (s2 + s3);
    float sum = ((s0[0] + s0[4]) + (s0[1] + s0[5])) + ((s0[2] + s0[6]) + (s0[3] + s0[7]));
    for (; i < dim; i++) sum += L2 ? (a[i] - b[i]) * (a[i] - b[i]) : a[i] * b[i];
    return L2 ? sum : 1 - sum;
}

inline void prefetch(const void* address, size_t bytes) {
    const char* start = static_cast<const char*>(address);
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(start + at);
}

// What the codes of a vector, 8-bit integers, stand for.
struct Scale {
    float factor = 0;  // of each code
    float square = 0;  // of the length of the vector
};

// Rows of equal length that follow each other: floats, or codes with a scale for each row.
struct Rows {
    const void* data;
    const Scale* scales = nullptr;
};

// The codes of a row, a multiple of 32 so that the widest instruction reads whole ones.
inline size_t code_bytes(size_t dim) { return (dim + 31) / 32 * 32; }

// Codes of -127 to 127 for a vector; those behind its last number are zero.
inline Scale encode(const float* vector, size_t dim, std::int8_t* codes) {
    float largest = 0;
    for (size_t i = 0; i < dim; i++) largest = std::max(largest, std::abs(vector[i]));
    const float inverse = largest > 1e-30f ? 127 / largest : 0, factor = largest / 127;
    std::int64_t squares = 0;
    std::fill(codes, codes + code_bytes(dim), std::int8_t{0});
    for (size_t i = 0; i < dim; i++) {
        codes[i] = static_cast<std::int8_t>(std::lrint(vector[i] * inverse));
        squares += codes[i] * codes[i];
    }
    return {factor, factor * factor * squares};
}

// The inner product of codes.
inline std::int32_t product_default(const std::int8_t* a, const std::int8_t* b, size_t dim) {
    std::int32_t sum = 0;
    for (size_t i = 0; i < dim; i++) sum += std::int32_t{a[i]} * b[i];
    return sum;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline std::int32_t product_avx2(
    const std::int8_t* a, const std::int8_t* b, size_t dim
) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < dim; i += 32) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i));
        const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i));
        // The instruction wants one side without signs; 2 x 127 x 127 fits in 16 bits.
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
#endif

template <class Number, bool L2, bool AVX2>
__attribute__((always_inline)) inline void distances_to(
    const Rows& query, const Rows& rows, size_t dim, const Slot* slots, size_t count, float* out
) {
    constexpr bool is_code = std::is_same_v<Number, std::int8_t>;
    constexpr size_t ahead = is_code ? 8 : 3;  // rows on their way from memory
    const size_t width = is_code ? code_bytes(dim) : dim;
    const Number* from = static_cast<const Number*>(query.data);
    const auto row = [&](size_t i) { return static_cast<const Number*>(rows.data) + slots[i] * width; };
    const auto fetch = [&](size_t i) {
        prefetch(row(i), width * sizeof(Number));
        if (is_code) __builtin_prefetch(rows.scales + slots[i]);
    };
    for (size_t i = 0; i < count && i < ahead; i++) fetch(i);
    for (size_t i = 0; i < count; i++) {
        if (i + ahead < count) fetch(i + ahead);
        if constexpr (is_code) {
#if defined(__x86_64__)
            const auto sum = (AVX2 ? product_avx2 : product_default)(from, row(i), width);
#else
            const auto sum = product_default(from, row(i), width);
#endif
            const Scale a = *query.scales, b = rows.scales[slots[i]];
            const float product = a.factor * b.factor * sum;
            out[i] = L2 ? a.square + b.square - 2 * product : 1 - product;
        } else {
            out[i] = distance<L2>(from, row(i), dim);
        }
    }
}

// From a query to some of the rows.
using Distances = void (*)(const Rows&, const Rows&, size_t, const Slot*, size_t, float*);

template <class Number, bool L2>
void distances_default(const Rows& q, const Rows& r, size_t d, const Slot* s, size_t n, float* o) {
    distances_to<Number, L2, false>(q, r, d, s, n, o);
}

#if defined(__x86_64__)
template <class Number, bool L2>
__attribute__((target("avx2,fma"))) void distances_avx2(
    const Rows& q, const Rows& r, size_t d, const Slot* s, size_t n, float* o
) {
    distances_to<Number, L2, true>(q, r, d, s, n, o);
}
#endif

// For this processor.
template <class Number>
Distances distances_function(bool l2) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return l2 ? distances_avx2<Number, true> : distances_avx2<Number, false>;
#endif
    return l2 ? distances_default<Number, true> : distances_default<Number, false>;
}

}  // namespace raysys
