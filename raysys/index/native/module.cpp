// The Python module `_raysys_hnsw`: graphs, and searches of many queries in threads without the
// interpreter lock. Only `raysys.index._hnsw_graph` calls it, with arrays of the types named here.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <system_error>
#include <thread>
#include <unordered_map>

#include "graph.hpp"

namespace raysys {
namespace {

// A view of an array for the duration of a call.
class View {
  public:
    View(PyObject* object, const char* types, size_t width, size_t length, bool writable = false) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object, &view_, flags)) throw std::invalid_argument("");
        const char code = view_.format[0] == 'q' ? 'l' : view_.format[0];
        if (!std::strchr(types, code) || view_.format[1] || !fits(width, length)) {
            PyBuffer_Release(&view_);
            throw std::invalid_argument("an array of another type or shape than expected");
        }
        type = code;
    }
    View(View&& other) : type(other.type), view_(other.view_) { other.view_.obj = nullptr; }
    ~View() { PyBuffer_Release(&view_); }

    template <class T>
    T* data() const { return static_cast<T*>(view_.buf); }
    size_t length() const { return view_.shape[0]; }

    char type;

  private:
    bool fits(size_t width, size_t length) const {
        return view_.ndim == (width ? 2 : 1) && static_cast<size_t>(view_.shape[0]) >= length &&
               (!width || static_cast<size_t>(view_.shape[1]) == width);
    }

    Py_buffer view_;
};

// The filters of queries, equal ones once.
struct Filters {
    std::vector<RowFilter> distinct;
    std::vector<size_t> queries;  // of each distinct filter
    std::vector<int> of_query;    // -1 without a filter
    std::vector<View> views;
    std::unordered_map<PyObject*, size_t> numbers;  // of the views, by column

    // From a list with None or a sequence of (column, low, high) for each query.
    Filters(PyObject* list, size_t count, size_t rows) : of_query(count, -1) {
        if (list == Py_None) return;
        if (!PyList_Check(list) || static_cast<size_t>(PyList_GET_SIZE(list)) != count)
            throw std::invalid_argument("a list with a filter for each query is expected");
        std::unordered_map<PyObject*, int> filters;
        for (size_t i = 0; i < count; i++) {
            PyObject* filter = PyList_GET_ITEM(list, i);
            if (filter == Py_None) continue;
            const auto [place, is_new] = filters.try_emplace(filter, distinct.size());
            if (is_new) {
                distinct.push_back(parse(filter, rows));
                queries.push_back(0);
            }
            of_query[i] = place->second;
            queries[place->second]++;
        }
    }

    RowFilter parse(PyObject* sequence, size_t rows) {
        RowFilter filter;
        if (!PyTuple_Check(sequence)) throw std::invalid_argument("a filter is a tuple");
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(sequence); i++) {
            PyObject *column, *low, *high;
            if (!PyArg_ParseTuple(PyTuple_GET_ITEM(sequence, i), "OOO", &column, &low, &high))
                throw std::invalid_argument("");
            const auto [place, is_new] = numbers.try_emplace(column, views.size());
            if (is_new) views.emplace_back(column, "?bBhHiIlfd", 0, rows);
            const View& view = views[place->second];
            Interval interval{view.data<void>(), view.type};
            if (std::strchr("fd", interval.type)) {
                interval.low_float = PyFloat_AsDouble(low);
                interval.high_float = PyFloat_AsDouble(high);
            } else {
                interval.low = PyLong_AsLongLong(low);
                interval.high = PyLong_AsLongLong(high);
            }
            if (PyErr_Occurred()) throw std::invalid_argument("");
            filter.intervals.push_back(interval);
        }
        return filter;
    }
};

// Calls `work(item, thread)` for each item.
template <class Work>
void in_threads(size_t items, size_t threads, Work work) {
    std::atomic<size_t> next{0};
    const auto run = [&](size_t thread) {
        for (size_t item; (item = next++) < items;) work(item, thread);
    };
    std::vector<std::thread> others;
    try {
        for (size_t thread = 1; thread < std::min(threads, items); thread++)
            others.emplace_back(run, thread);
    } catch (const std::system_error&) {  // no further threads: fewer do the work
    }
    run(0);
    for (std::thread& other : others) other.join();
}

struct Answers {
    std::int64_t* slots;
    float* distances;
    size_t k;

    void write(size_t query, const std::vector<Near>& nearest) const {
        for (size_t i = 0; i < k; i++) {
            const bool is_there = i < nearest.size();
            slots[query * k + i] = is_there ? std::int64_t{nearest[i].slot()} : -1;
            distances[query * k + i] =
                is_there ? nearest[i].distance() : std::numeric_limits<float>::infinity();
        }
    }
};

class WithoutLock {
  public:
    WithoutLock() : state_(PyEval_SaveThread()) {}
    ~WithoutLock() { PyEval_RestoreThread(state_); }

  private:
    PyThreadState* state_;
};

struct PyGraph {
    PyObject_HEAD
    Graph* graph;
    size_t dim;
    std::vector<Scratch>* scratch;
};

// None, or an exception; `call` runs without arguments and may have set it.
template <class Call>
PyObject* guarded(Call call) {
    try {
        call();
        Py_RETURN_NONE;
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    } catch (const std::exception& error) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
}

PyObject* graph_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
    Py_ssize_t dim, M, ef_construction, capacity;
    unsigned long long seed;
    int l2, coded;
    if (!PyArg_ParseTuple(arguments, "nnnKppn", &dim, &M, &ef_construction, &seed, &l2, &coded,
                          &capacity))
        return nullptr;
    PyObject* self = type->tp_alloc(type, 0);  // zeroed
    if (!self) return nullptr;
    PyObject* done = guarded([&] {
        auto* object = reinterpret_cast<PyGraph*>(self);
        object->dim = dim;
        object->scratch = new std::vector<Scratch>;
        object->graph = new Graph(dim, M, ef_construction, seed, l2, coded, capacity);
    });
    Py_XDECREF(done);
    if (!done) Py_CLEAR(self);
    return self;
}

void graph_free(PyObject* self) {
    delete reinterpret_cast<PyGraph*>(self)->graph;
    delete reinterpret_cast<PyGraph*>(self)->scratch;
    PyTypeObject* type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

// add(vectors float32 (n, dim), slots int64)
PyObject* graph_add(PyObject* self, PyObject* arguments) {
    PyObject *vectors, *slots;
    if (!PyArg_ParseTuple(arguments, "OO", &vectors, &slots)) return nullptr;
    return guarded([&] {
        auto* object = reinterpret_cast<PyGraph*>(self);
        const View added(slots, "l", 0, 0), rows(vectors, "f", object->dim, 0);
        WithoutLock unlocked;
        for (size_t i = 0; i < added.length(); i++) {
            const std::int64_t slot = added.data<std::int64_t>()[i];
            if (slot < 0 || static_cast<size_t>(slot) >= rows.length())
                throw std::out_of_range("a slot without a vector");
            object->graph->add(rows.data<float>(), slot);
        }
    });
}

// remove(slots int64)
PyObject* graph_remove(PyObject* self, PyObject* slots) {
    return guarded([&] {
        const View removed(slots, "l", 0, 0);
        for (size_t i = 0; i < removed.length(); i++)
            reinterpret_cast<PyGraph*>(self)->graph->remove(removed.data<std::int64_t>()[i]);
    });
}

// search(vectors float32 (n, dim), queries float32 (q, dim), k, ef, candidate_cost, filters, threads,
//        slots int64 (q, k), distances float32 (q, k)): by comparison with all matching rows where
//        that costs less; `candidate_cost` is in distances
PyObject* graph_search(PyObject* self, PyObject* arguments) {
    PyObject *vectors, *queries, *filters, *slots, *distances;
    Py_ssize_t k, ef, threads;
    double candidate_cost;
    if (!PyArg_ParseTuple(arguments, "OOnndOnOO", &vectors, &queries, &k, &ef, &candidate_cost,
                          &filters, &threads, &slots, &distances))
        return nullptr;
    return guarded([&] {
        auto* object = reinterpret_cast<PyGraph*>(self);
        const Graph& graph = *object->graph;
        const View rows(vectors, "f", object->dim, graph.slots());
        const View asked(queries, "f", object->dim, 0);
        const View found(slots, "l", k, asked.length(), true);
        const View far(distances, "f", k, asked.length(), true);
        const Filters chosen(filters, asked.length(), graph.slots());
        const Answers answers{found.data<std::int64_t>(), far.data<float>(), size_t(k)};
        WithoutLock unlocked;
        if (object->scratch->size() < size_t(threads)) object->scratch->resize(threads);
        // The matching rows of each filter for which that costs less than the graph.
        std::vector<std::unique_ptr<std::vector<Slot>>> matching(chosen.distinct.size());
        const auto match = [&](size_t i) {
            const RowFilter& filter = chosen.distinct[i];
            const double share = filter.share(graph.slots());
            if (filter.is_scan_cheaper(graph.slots(), share, chosen.queries[i], ef, candidate_cost))
                matching[i].reset(new std::vector<Slot>(filter.below(graph.slots())));
        };
        std::vector<size_t> shared;  // by several queries
        for (size_t i = 0; i < matching.size(); i++)
            if (chosen.queries[i] > 1) shared.push_back(i);
        in_threads(shared.size(), threads, [&](size_t i, size_t) { match(shared[i]); });
        in_threads(asked.length(), threads, [&](size_t i, size_t thread) {
            Scratch& scratch = (*object->scratch)[thread];
            const int filter = chosen.of_query[i];
            if (filter >= 0 && chosen.queries[filter] == 1) match(filter);
            const float *vector = rows.data<float>(), *query = asked.data<float>() + i * object->dim;
            if (filter >= 0 && matching[filter])
                graph.search_among(*matching[filter], vector, query, k, ef, scratch);
            else
                graph.search(vector, query, k, ef, filter < 0 ? nullptr : &chosen.distinct[filter],
                             scratch);
            answers.write(i, scratch.results);
            if (filter >= 0 && chosen.queries[filter] == 1) matching[filter].reset();
        });
    });
}

PyObject* graph_file(PyObject* path_bytes, const char* mode, const std::function<void(std::FILE*)>& use) {
    return guarded([&] {
        const char* path = PyBytes_AsString(path_bytes);
        if (!path) throw std::invalid_argument("");
        std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, mode), std::fclose);
        if (!file) {
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
            throw std::runtime_error("");
        }
        WithoutLock unlocked;
        use(file.get());
        if (std::fflush(file.get())) throw std::runtime_error("cannot write the graph");
    });
}

PyObject* graph_save(PyObject* self, PyObject* path) {
    const Graph& graph = *reinterpret_cast<PyGraph*>(self)->graph;
    return graph_file(path, "wb", [&](std::FILE* file) { graph.save(file); });
}

// load(path bytes, vectors float32 (n, dim))
PyObject* graph_load(PyObject* self, PyObject* arguments) {
    PyObject *path, *vectors;
    if (!PyArg_ParseTuple(arguments, "OO", &path, &vectors)) return nullptr;
    return guarded([&] {
        auto* object = reinterpret_cast<PyGraph*>(self);
        const View rows(vectors, "f", object->dim, 0);
        PyObject* done = graph_file(path, "rb", [&](std::FILE* file) {
            object->graph->load(file, rows.data<float>(), rows.length());
        });
        if (!done) throw std::runtime_error("");
        Py_DECREF(done);
    });
}

PyObject* graph_size(PyObject* self, void*) {
    return PyLong_FromSize_t(reinterpret_cast<PyGraph*>(self)->graph->size());
}

// scan(l2, vectors float32 (n, dim), slots int64 or a number, queries float32 (q, dim), dim, k,
//      filters, visible, threads, slots int64 (q, k), distances float32 (q, k)):
//      the exact k nearest among these slots, or those below the number
PyObject* scan(PyObject*, PyObject* arguments) {
    PyObject *vectors, *among, *queries, *filters, *visible, *slots, *distances;
    Py_ssize_t dim, k, threads;
    int l2;
    if (!PyArg_ParseTuple(arguments, "pOOOnnOOnOO", &l2, &vectors, &among, &queries, &dim, &k,
                          &filters, &visible, &threads, &slots, &distances))
        return nullptr;
    return guarded([&] {
        const bool is_range = PyLong_Check(among);
        std::vector<Slot> some;
        if (!is_range) {
            const View view(among, "l", 0, 0);
            some.assign(view.data<std::int64_t>(), view.data<std::int64_t>() + view.length());
        }
        const size_t length = is_range       ? PyLong_AsSize_t(among)
                              : some.empty() ? 0
                                             : some.back() + size_t{1};  // they ascend
        const View rows(vectors, "f", dim, length), asked(queries, "f", dim, 0);
        const View found(slots, "l", k, asked.length(), true);
        const View far(distances, "f", k, asked.length(), true);
        Filters chosen(filters, asked.length(), length);
        const RowFilter shown = chosen.parse(visible, length);
        const Answers answers{found.data<std::int64_t>(), far.data<float>(), size_t(k)};
        const Distances function = distances_function<float>(l2);
        WithoutLock unlocked;
        for (int& filter : chosen.of_query)
            if (filter < 0) filter = chosen.distinct.size();
        if (std::count(chosen.of_query.begin(), chosen.of_query.end(), chosen.distinct.size()))
            chosen.distinct.emplace_back();  // of queries without a filter
        std::vector<std::vector<Slot>> matching(chosen.distinct.size());
        in_threads(matching.size(), threads, [&](size_t i, size_t) {
            const RowFilter& filter = chosen.distinct[i];
            matching[i] = shown.among(is_range ? filter.below(length) : filter.among(some));
        });
        in_threads(asked.length(), threads, [&](size_t query, size_t) {
            std::vector<Near> heap;
            nearest_of(matching[chosen.of_query[query]], {rows.data<float>()},
                       {asked.data<float>() + query * dim}, dim, k, function,
                       [](Slot) { return true; }, heap);
            std::sort_heap(heap.begin(), heap.end());
            answers.write(query, heap);
        });
    });
}

PyMethodDef graph_methods[] = {
    {"add", graph_add, METH_VARARGS, "Insert rows."},
    {"remove", graph_remove, METH_O, "Leave rows out of answers."},
    {"search", graph_search, METH_VARARGS, "The approximate k nearest of each query."},
    {"save", graph_save, METH_O, "Write the graph to a path, bytes."},
    {"load", graph_load, METH_VARARGS, "Read the graph of some rows from a path, bytes."},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef graph_properties[] = {
    {"size", graph_size, nullptr, "Rows that are not removed.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyType_Slot graph_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(graph_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(graph_free)},
    {Py_tp_methods, graph_methods},
    {Py_tp_getset, graph_properties},
    {0, nullptr},
};
PyType_Spec graph_spec = {"_raysys_hnsw.Graph", sizeof(PyGraph), 0, Py_TPFLAGS_DEFAULT, graph_slots};

PyMethodDef methods[] = {
    {"scan", scan, METH_VARARGS, "The exact k nearest among the rows that match."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_raysys_hnsw", nullptr, -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace raysys

PyMODINIT_FUNC PyInit__raysys_hnsw() {
    PyObject* module = PyModule_Create(&raysys::definition);
    PyObject* type = PyType_FromSpec(&raysys::graph_spec);
    if (!module || !type || PyModule_AddObject(module, "Graph", type)) return nullptr;
    return module;
}
