// Numbers and vectors: what a stored element is computed in, and how a register full of them is read and written.
//
// Written with the vector extensions of GCC and Clang, so that one source serves AVX-512 (64 bytes), AVX2 (32) and
// everything else (16: SSE2, NEON). Everything lies in a namespace of its instruction set: the same template compiled
// for another one must not be merged with it by the linker. For the same reason no
// function of std is instantiated here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

namespace attendo {
namespace ATTENDO_ISA {

using index = std::int64_t;

constexpr int BYTES = ATTENDO_BYTES;  // of one register

struct bfloat16 {
    std::uint16_t bits;
};

typedef float Floats __attribute__((vector_size(BYTES)));
typedef double Doubles __attribute__((vector_size(BYTES)));
typedef std::int32_t Ints __attribute__((vector_size(BYTES)));
typedef std::uint32_t Bits __attribute__((vector_size(BYTES)));
typedef std::uint16_t Halves __attribute__((vector_size(BYTES / 2)));

template <class To, class From>
inline To reinterpret(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// Store<T>: T is what lies in memory, Number what is computed with, Vector a register of Numbers.
template <class T>
struct Store;

template <>
struct Store<float> {
    using Number = float;
    using Vector = Floats;
    static Vector load(const float* from) {
        Vector v;
        std::memcpy(&v, from, sizeof v);
        return v;
    }
    static void save(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }
    static Number get(float x) { return x; }
    static float put(Number x) { return x; }
    static Vector round(Vector v) { return v; }
    static Number round(Number x) { return x; }
};

template <>
struct Store<double> {
    using Number = double;
    using Vector = Doubles;
    static Vector load(const double* from) {
        Vector v;
        std::memcpy(&v, from, sizeof v);
        return v;
    }
    static void save(double* to, Vector v) { std::memcpy(to, &v, sizeof v); }
    static Number get(double x) { return x; }
    static double put(Number x) { return x; }
    static Vector round(Vector v) { return v; }
    static Number round(Number x) { return x; }
};

// bfloat16 is computed in float32 and rounded to nearest, ties to even; a NaN stays one.
template <>
struct Store<bfloat16> {
    using Number = float;
    using Vector = Floats;
    static Vector load(const bfloat16* from) {
        Halves halves;
        std::memcpy(&halves, from, sizeof halves);
        return reinterpret<Vector>(__builtin_convertvector(halves, Bits) << 16);
    }
    static Bits rounded(Vector v) {
        const Bits bits = reinterpret<Bits>(v);
        const Bits near = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return v != v ? (bits >> 16) | 0x40u : near;
    }
    static void save(bfloat16* to, Vector v) {
        const Halves halves = __builtin_convertvector(rounded(v), Halves);
        std::memcpy(to, &halves, sizeof halves);
    }
    static Number get(bfloat16 x) { return reinterpret<float>(std::uint32_t(x.bits) << 16); }
    static bfloat16 put(Number x) {
        const std::uint32_t bits = reinterpret<std::uint32_t>(x);
        if (x != x) return {std::uint16_t((bits >> 16) | 0x40u)};
        return {std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
    }
    static Vector round(Vector v) { return reinterpret<Vector>(rounded(v) << 16); }
    static Number round(Number x) { return get(put(x)); }
};

template <class T>
using NumberOf = typename Store<T>::Number;
template <class T>
using VectorOf = typename Store<T>::Vector;
template <class T>
constexpr int LANES = sizeof(VectorOf<T>) / sizeof(NumberOf<T>);

template <class Vector, class Number>
inline Vector broadcast(Number x) {
    return Vector{} + x;
}

// The larger, NaN if either is NaN, as in PyTorch.
template <class V>
inline V larger(V a, V b) {
    return (b > a) | (b != b) ? b : a;
}

// The larger of two that are not NaN: one instruction. Where a sum over the same numbers is no NaN, none of them was.
template <class V>
inline V quick_larger(V a, V b) {
    return a > b ? a : b;
}

// ReLU as PyTorch's: 0 below 0, NaN stays.
template <class V>
inline V rectified(V v) {
    const V zero = V{};
    return v < zero ? zero : v;
}

// Which elements are at the maximum, as 1 or 0.
template <class V>
inline V at(V v, V maximum) {
    const V one = V{} + 1;
    return v == maximum ? one : V{};
}
template <>
inline float at(float v, float maximum) {
    return v == maximum ? 1.0f : 0.0f;
}
template <>
inline double at(double v, double maximum) {
    return v == maximum ? 1.0 : 0.0;
}
// Keep the gradient where the rectified output is above 0, or NaN.
template <class V>
inline V passed(V gradient, V output) {
    const V zero = V{};
    return output <= zero ? zero : gradient;
}

// The register with its numbers moved K places. GCC makes one shuffle of a mask that is written out, and dozens of
// instructions of a loop.
template <class T, int K, int... I>
inline VectorOf<T> rotated(VectorOf<T> v, std::integer_sequence<int, I...>) {
#ifdef __clang__
    return __builtin_shufflevector(v, v, ((I + K) % LANES<T>)...);
#else
    return __builtin_shuffle(v, decltype(v < v){((I + K) % LANES<T>)...});
#endif
}
template <class T, int K>
inline VectorOf<T> rotated(VectorOf<T> v) {
    return rotated<T, K>(v, std::make_integer_sequence<int, LANES<T>>{});
}
// f over all numbers of a register, without a branch: those that depend on the data are mispredicted every other time.
template <class T, int K = LANES<T> / 2, class F>
inline NumberOf<T> folded(VectorOf<T> v, const F& f) {
    v = f(v, rotated<T, K>(v));
    if constexpr (K > 1)
        return folded<T, K / 2>(v, f);
    else
        return v[0];
}
template <class T>
inline NumberOf<T> sum_of(VectorOf<T> v) {
    return folded<T>(v, [](auto a, auto b) { return a + b; });
}
// None of them NaN.
template <class T>
inline NumberOf<T> largest_of(VectorOf<T> v) {
    return folded<T>(v, [](auto a, auto b) { return quick_larger(a, b); });
}
template <class T, int... I>
inline VectorOf<T> places(std::integer_sequence<int, I...>) {
    return VectorOf<T>{NumberOf<T>(I)...};
}
// The last `count` numbers of a register; the others become 0.
template <class T>
inline VectorOf<T> last_of(VectorOf<T> v, index count) {
    const VectorOf<T> place = places<T>(std::make_integer_sequence<int, LANES<T>>{});
    return place >= NumberOf<T>(LANES<T> - count) ? v : VectorOf<T>{};
}

// 1 / (1 + exp(-x)) to about 2 units in the last place; saturates to 0 and 1, NaN stays.
inline Floats sigmoid(Floats x) {
    const Floats low = broadcast<Floats>(-87.0f), high = broadcast<Floats>(87.0f);
    Floats y = x < low ? low : x;
    y = y > high ? high : y;
    y = -y;
    const Floats magic = broadcast<Floats>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats shifted = y * 1.44269504088896341f + magic;
    const Floats n = shifted - magic;
    Floats r = y - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    Floats p = broadcast<Floats>(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Ints scale = (reinterpret<Ints>(shifted) - reinterpret<Ints>(magic) + 127) << 23;
    const Floats e = p * reinterpret<Floats>(scale);
    const Floats s = 1.0f / (1.0f + e);
    const Floats saturated = x < low ? Floats{} : s;
    return x != x ? x : saturated;
}
inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline float sigmoid(float x) { return sigmoid(broadcast<Floats>(x))[0]; }

// Memory for intermediate numbers, freed at the end of its scope.
template <class Number>
struct Scratch {
    explicit Scratch(index count) : data(nullptr) {
        if (count > 0) {
            data = static_cast<Number*>(std::malloc(sizeof(Number) * count));
            if (!data) std::abort();
        }
    }
    ~Scratch() { std::free(data); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    Number* data;
};

inline index least(index a, index b) { return a < b ? a : b; }
inline index most(index a, index b) { return a > b ? a : b; }
inline index ceil_of(index a, index b) { return (a + b - 1) / b; }

// Run f(0) ... f(tasks - 1), each once, on the caller's OpenMP threads. What a task computes does not depend on their
// number. Little work stays on the calling thread: waking another costs microseconds.
template <class F>
inline void parallel(int threads, index tasks, index bytes, const F& f) {
    const bool alone = threads < 2 || tasks < 2 || bytes < 65536;
#pragma omp parallel for schedule(static) num_threads(threads) if (!alone)
    for (index task = 0; task < tasks; ++task) f(task);
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
