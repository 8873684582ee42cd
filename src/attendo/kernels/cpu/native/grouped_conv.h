// A convolution of few channels per group, as in the wide kernels of PSA: (N, C, H, W) -> (N, K, H', W'), no bias.
//
// A register holds the same pixel of LANES output channels. Each lane multiplies its own input channel, so that the map
// is first laid out with that channel in that lane; then every tap is one load and one multiply-add, whatever the groups.
// The libraries' kernels for such shapes leave most lanes empty: 9 x 9 with 16 groups, 64 -> 16 channels of 56 x 56, took
// oneDNN 44 times as long per product as a dense 3 x 3 (AMD EPYC, 2 threads, 16 images, torch 2.15, 2026-11-21).
#pragma once

#include "channel_stats.h"

namespace attendo {
namespace ATTENDO_ISA {

struct Grouped {
    index inputs, outputs, groups, height, width, kernel, stride, padding;
    index in_group() const { return inputs / groups; }
    index out_group() const { return outputs / groups; }
    index out_height() const { return (height + 2 * padding - kernel) / stride + 1; }
    index out_width() const { return (width + 2 * padding - kernel) / stride + 1; }
    index padded_width() const { return width + 2 * padding; }
};

// One step of a transposition: the lanes with bit S set of a, and those without of b, change places.
template <class T, int S, int... I>
inline void exchange(VectorOf<T>& a, VectorOf<T>& b, std::integer_sequence<int, I...>) {
    constexpr int L = LANES<T>;
#ifdef __clang__
    const VectorOf<T> low = __builtin_shufflevector(a, b, ((I & S) ? L + I - S : I)...);
    const VectorOf<T> high = __builtin_shufflevector(a, b, ((I & S) ? L + I : I + S)...);
#else
    using Mask = decltype(a < a);
    const VectorOf<T> low = __builtin_shuffle(a, b, Mask{((I & S) ? L + I - S : I)...});
    const VectorOf<T> high = __builtin_shuffle(a, b, Mask{((I & S) ? L + I : I + S)...});
#endif
    a = low, b = high;
}
template <class T, int S = LANES<T> / 2>
inline void transpose(VectorOf<T>* rows) {
    for (int r = 0; r < LANES<T>; ++r)
        if (!(r & S)) exchange<T, S>(rows[r], rows[r + S], std::make_integer_sequence<int, LANES<T>>{});
    if constexpr (S > 1) transpose<T, S / 2>(rows);
}

// Input row `h` of one sample for the outputs [first, first + LANES): to[i][w][lane], i a channel within the group.
template <class T>
void lay_out(const T* x, const Grouped& g, bool channels_last, index first, index h, NumberOf<T>* to) {
    using S = Store<T>;
    using N = Store<NumberOf<T>>;
    using V = VectorOf<T>;
    constexpr int L = LANES<T>;
    const index I = g.in_group(), O = g.out_group(), W = g.width, wide = g.padded_width();
    const bool inside = h >= 0 && h < g.height;
    index channel[L];
    for (int lane = 0; lane < L; ++lane) channel[lane] = least(first + lane, g.outputs - 1) / O * I;
    for (index i = 0; i < I; ++i) {
        NumberOf<T>* const row = to + i * wide * L;
        for (index w = 0; w < g.padding * L; ++w) row[w] = row[(wide - g.padding) * L + w] = 0;
        NumberOf<T>* const middle = row + g.padding * L;
        if (!inside) {
            for (index w = 0; w < W * L; ++w) middle[w] = 0;
        } else if (channels_last) {
            for (index w = 0; w < W; ++w)
                for (int lane = 0; lane < L; ++lane)
                    middle[w * L + lane] = S::get(x[(h * W + w) * g.inputs + channel[lane] + i]);
        } else {
            const T* from[L];
            for (int lane = 0; lane < L; ++lane) from[lane] = x + ((channel[lane] + i) * g.height + h) * W;
            index w = 0;
            for (; w + L <= W; w += L) {
                V rows[L];
                for (int lane = 0; lane < L; ++lane) rows[lane] = S::load(from[lane] + w);
                transpose<T>(rows);
                for (int p = 0; p < L; ++p) N::save(middle + (w + p) * L, rows[p]);
            }
            for (; w < W; ++w)
                for (int lane = 0; lane < L; ++lane) middle[w * L + lane] = S::get(from[lane][w]);
        }
    }
}

// COUNT neighbouring outputs of one row. rows: the k laid-out input rows, `apart` numbers from one to the next.
template <int COUNT, class T>
inline void pixels(const NumberOf<T>* const* rows, const NumberOf<T>* weight, const Grouped& g, index w, VectorOf<T>* sums) {
    using N = Store<NumberOf<T>>;
    constexpr int L = LANES<T>;
    const index I = g.in_group(), wide = g.padded_width();
    VectorOf<T> own[COUNT] = {};
    for (index kh = 0; kh < g.kernel; ++kh)
        for (index i = 0; i < I; ++i) {
            const NumberOf<T>* const from = rows[kh] + (i * wide + w * g.stride) * L;
            const NumberOf<T>* const taps = weight + (kh * I + i) * g.kernel * L;
            for (index kw = 0; kw < g.kernel; ++kw) {
                const VectorOf<T> tap = N::load(taps + kw * L);
                for (int p = 0; p < COUNT; ++p) own[p] += tap * N::load(from + (kw + p * g.stride) * L);
            }
        }
    for (int p = 0; p < COUNT; ++p) sums[p] = own[p];
}

constexpr int WIDEST = 14;  // outputs computed together: their sums, and one weight, fit 16 registers

template <class T>
void grouped_conv(const T* x, index samples, Grouped g, bool channels_last, const T* weight, T* out, int threads) {
    using S = Store<T>;
    using Number = NumberOf<T>;
    constexpr int L = LANES<T>;
    const index I = g.in_group(), k = g.kernel, H = g.out_height(), W = g.out_width(), wide = g.padded_width();
    const index sets = ceil_of(g.outputs, L), row = I * wide * L, set = k * I * k * L;
    Scratch<Number> taps_(sets * set);
    Number* const taps = taps_.data;
    for (index v = 0; v < sets; ++v)
        for (index kh = 0; kh < k; ++kh)
            for (index i = 0; i < I; ++i)
                for (index kw = 0; kw < k; ++kw)
                    for (int lane = 0; lane < L; ++lane) {
                        const index o = v * L + lane;
                        taps[v * set + ((kh * I + i) * k + kw) * L + lane] =
                            o < g.outputs ? S::get(weight[((o * I + i) * k + kh) * k + kw]) : 0;
                    }
    const index parts = samples * sets % threads ? least(H, threads) : 1, part = ceil_of(H, parts);
    parallel(threads, samples * sets * parts, samples * H * W * set, [=](index task) {
        const index n = task / (sets * parts), v = task / parts % sets, first = task % parts * part;
        const T* const sample = x + n * g.inputs * g.height * g.width;
        Scratch<Number> ring_(k * row);  // the laid-out rows that one output row sees, each in the place of h modulo k
        Number* const ring = ring_.data;
        const index lanes = least(L, g.outputs - v * L);
        index ready = first * g.stride - g.padding;  // the next input row to lay out
        for (index h = first; h < least(H, first + part); ++h) {
            const index top = h * g.stride - g.padding;
            for (ready = most(ready, top); ready < top + k; ++ready)
                lay_out(sample, g, channels_last, v * L, ready, ring + (ready + g.padding) % k * row);
            const Number* rows[64];
            for (index kh = 0; kh < k; ++kh) rows[kh] = ring + (top + kh + g.padding) % k * row;
            for (index w = 0; w < W;) {
                VectorOf<T> sums[WIDEST];
                index count = 1;
                if (W - w >= 14)
                    pixels<14, T>(rows, taps + v * set, g, w, sums), count = 14;
                else if (W - w >= 7)
                    pixels<7, T>(rows, taps + v * set, g, w, sums), count = 7;
                else if (W - w >= 4)
                    pixels<4, T>(rows, taps + v * set, g, w, sums), count = 4;
                else
                    pixels<1, T>(rows, taps + v * set, g, w, sums);
                for (index p = 0; p < count; ++p) {
                    const index at = h * W + w + p;
                    if (channels_last && lanes == L)
                        S::save(out + (n * H * W + at) * g.outputs + v * L, sums[p]);
                    else
                        for (index lane = 0; lane < lanes; ++lane) {
                            const index o = v * L + lane;
                            out[channels_last ? (n * H * W + at) * g.outputs + o : (n * g.outputs + o) * H * W + at] =
                                S::put(sums[p][lane]);
                        }
                }
                w += count;
            }
        }
    });
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
