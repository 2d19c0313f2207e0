// Distances of a query to rows of a matrix, with the widest instructions of the processor.
#pragma once

#include <cstddef>
#include <cstdint>

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

template <bool L2>
__attribute__((always_inline)) inline void distances_to(
    const float* query, const float* rows, size_t dim, const Slot* slots, size_t count, float* out
) {
    constexpr size_t ahead = 3;  // rows on their way from memory
    for (size_t i = 0; i < count && i < ahead; i++) prefetch(rows + slots[i] * dim, 4 * dim);
    for (size_t i = 0; i < count; i++) {
        if (i + ahead < count) prefetch(rows + slots[i + ahead] * dim, 4 * dim);
        out[i] = distance<L2>(query, rows + slots[i] * dim, dim);
    }
}

using Distances = void (*)(const float*, const float*, size_t, const Slot*, size_t, float*);

template <bool L2>
void distances_default(const float* q, const float* r, size_t d, const Slot* s, size_t n, float* o) {
    distances_to<L2>(q, r, d, s, n, o);
}

#if defined(__x86_64__)
template <bool L2>
__attribute__((target("avx2,fma"))) void distances_avx2(
    const float* q, const float* r, size_t d, const Slot* s, size_t n, float* o
) {
    distances_to<L2>(q, r, d, s, n, o);
}
#endif

// Of this processor; rows are `dim` floats each, one after the other.
inline Distances distances_function(bool l2) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return l2 ? distances_avx2<true> : distances_avx2<false>;
#endif
    return l2 ? distances_default<true> : distances_default<false>;
}

}  // namespace raysys
