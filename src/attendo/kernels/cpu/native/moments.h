// What a batch norm in training has to know of a map, one read of it from main memory: mean and variance of every channel
// over the batch; and what its result is pooled to, without a look at it.
#pragma once

#include "spatial_stats.h"

namespace attendo {
namespace ATTENDO_ISA {

// A part of one channel of one sample: how it is centred, spread and bounded.
template <class Number>
struct Moments {
    Number *mean, *squares, *top, *bottom;  // squares: of the distances from the mean, summed
    Moments from(index i) const { return {mean + i, squares + i, top + i, bottom + i}; }
};

// One channel of the contiguous layout. The second look finds it in the first-level cache.
template <class T>
inline void row_moments(const T* x, index n, Moments<NumberOf<T>> to) {
    using S = Store<T>;
    using V = VectorOf<T>;
    using Number = NumberOf<T>;
    constexpr int L = LANES<T>, ROWS = 4;
    V sums[ROWS] = {}, tops[ROWS], bottoms[ROWS];
    const Number first = S::get(x[0]);
    Number sum = 0, top = first, bottom = first;
    for (int r = 0; r < ROWS; ++r) tops[r] = bottoms[r] = broadcast<V>(first);
    index i = 0;
    for (; i + ROWS * L <= n; i += ROWS * L)
        for (int r = 0; r < ROWS; ++r) {
            const V v = S::load(x + i + r * L);
            sums[r] += v;
            tops[r] = quick_larger(tops[r], v);
            bottoms[r] = v < bottoms[r] ? v : bottoms[r];
        }
    for (; i + L <= n; i += L) {
        const V v = S::load(x + i);
        sums[0] += v;
        tops[0] = quick_larger(tops[0], v);
        bottoms[0] = v < bottoms[0] ? v : bottoms[0];
    }
    for (; i < n; ++i) {
        const Number v = S::get(x[i]);
        sum += v;
        top = quick_larger(top, v);
        bottom = v < bottom ? v : bottom;
    }
    sum += sum_of<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    const Number mean = sum / Number(n);
    V squares[ROWS] = {};
    Number square = 0;
    for (i = 0; i + ROWS * L <= n; i += ROWS * L)
        for (int r = 0; r < ROWS; ++r) {
            const V v = S::load(x + i + r * L) - mean;
            squares[r] += v * v;
        }
    for (; i + L <= n; i += L) {
        const V v = S::load(x + i) - mean;
        squares[0] += v * v;
    }
    for (; i < n; ++i) square += (S::get(x[i]) - mean) * (S::get(x[i]) - mean);
    auto smaller = [](auto a, auto b) { return b < a ? b : a; };
    *to.mean = mean;
    *to.squares = square + sum_of<T>((squares[0] + squares[1]) + (squares[2] + squares[3]));
    *to.top = quick_larger(top, largest_of<T>(quick_larger(quick_larger(tops[0], tops[1]), quick_larger(tops[2], tops[3]))));
    *to.bottom = smaller(bottom, folded<T>(smaller(smaller(bottoms[0], bottoms[1]), smaller(bottoms[2], bottoms[3])), smaller));
}

// Some positions of the channels_last layout.
template <class T>
inline void block_moments(const T* x, index positions, index C, Moments<NumberOf<T>> to) {
    using Number = NumberOf<T>;
    block_stats<T>(Plain<T>{x}, positions, C, to.mean, to.top);
    for (index c = 0; c < C; ++c) {
        to.mean[c] /= Number(positions);
        to.squares[c] = 0;
        to.bottom[c] = Store<T>::get(x[c]);
    }
    for (index p = 0; p < positions; ++p)
        along<T>(C, [&](auto* kind, index c) {
            const auto v = got(kind, x + p * C + c);
            const auto away = v - got(kind, to.mean + c), bottom = got(kind, to.bottom + c);
            put(to.squares + c, got(kind, to.squares + c) + away * away);
            put(to.bottom + c, v < bottom ? v : bottom);
        });
}

// A norm as x * scale + shift, C numbers each. weight and bias may be null.
template <class T>
inline void folded_norm(const T* weight, const T* bias, NumberOf<T> mean, NumberOf<T> var, double eps, index c,
                        NumberOf<T>* scale, NumberOf<T>* shift) {
    using Number = NumberOf<T>;
    scale[c] = 1 / std::sqrt(var + Number(eps));
    if (weight) scale[c] *= Store<T>::get(weight[c]);
    shift[c] = (bias ? Store<T>::get(bias[c]) : 0) - mean * scale[c];
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
