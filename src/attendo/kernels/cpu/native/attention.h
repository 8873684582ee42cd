// A whole channel and spatial attention in one call, for inference: SE, ECA, CBAM and its halves.
//
// The batch goes through in chunks that fit the cache, every chunk through all steps, so that the map comes from main
// memory once. The threads share each step and meet after it.
#pragma once

#include "recalibrate.h"

namespace attendo {
namespace ATTENDO_ISA {

// One call, as attendo.kernels.cpu.calls packs it. Null pointers: a part that is not there.
struct Attention {
    index samples, channels, height, width, dtype, channels_last, threads, relu;
    const void *x, *residual;
    void* out;
    const void *fc1, *fc1_bias, *fc2, *fc2_bias;  // (hidden, C), (hidden), (C, hidden), (C): the shared MLP, or
    const void* conv;                             // (kernel_size): the shared convolution over channels
    const void* spatial;                          // (2, spatial_kernel, spatial_kernel)
    const void *norm_weight, *norm_bias, *norm_mean, *norm_var;  // one number each
    double norm_eps;
    index hidden, kernel_size, spatial_kernel;
    index mean, maximum;  // which statistics the channel half sees
    index maximum_first;  // in the spatial convolution's input
};

// R rows of a matrix times S vectors: row r and vector v give to[v * apart + r]. Each number that is loaded serves
// R or S products.
template <int R, int S, class T>
inline void dots(const T* rows, index length, const NumberOf<T>* vectors, NumberOf<T>* to, index apart) {
    using V = VectorOf<T>;
    using N = Store<NumberOf<T>>;
    constexpr int L = LANES<T>;
    V sums[R][S] = {};
    index i = 0;
    for (; i + L <= length; i += L) {
        V loaded[S];
        for (int v = 0; v < S; ++v) loaded[v] = N::load(vectors + v * length + i);
        for (int r = 0; r < R; ++r) {
            const V row = Store<T>::load(rows + r * length + i);
            for (int v = 0; v < S; ++v) sums[r][v] += row * loaded[v];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < S; ++v) {
            NumberOf<T> sum = sum_of<T>(sums[r][v]);
            for (index j = i; j < length; ++j) sum += Store<T>::get(rows[r * length + j]) * vectors[v * length + j];
            to[v * apart + r] = sum;
        }
}
template <int R, class T>
inline void dots_of_rows(const T* rows, index length, const NumberOf<T>* vectors, index count, NumberOf<T>* to, index apart) {
    index v = 0;
    for (; v + 4 <= count; v += 4) dots<R, 4>(rows, length, vectors + v * length, to + v * apart, apart);
    for (; v < count; ++v) dots<R, 1>(rows, length, vectors + v * length, to + v * apart, apart);
}
// Rows [from, end) of a (rows, length) matrix times `count` vectors of that length: results (count, apart).
template <class T>
inline void times_matrix(const T* matrix, index from, index end, index length, const NumberOf<T>* vectors, index count,
                         NumberOf<T>* to, index apart) {
    index r = from;
    for (; r + 4 <= end; r += 4) dots_of_rows<4>(matrix + r * length, length, vectors, count, to + r, apart);
    for (; r < end; ++r) dots_of_rows<1>(matrix + r * length, length, vectors, count, to + r, apart);
}

inline void sigmoid_of(float* x, index n) {
    constexpr int L = LANES<float>;
    index i = 0;
    for (; i + L <= n; i += L) Store<float>::save(x + i, sigmoid(Store<float>::load(x + i)));
    for (; i < n; ++i) x[i] = sigmoid(x[i]);
}
inline void sigmoid_of(double* x, index n) {
    for (index i = 0; i < n; ++i) x[i] = sigmoid(x[i]);
}

// One row of the spatial convolution over a padded map (2, H + k - 1, stride), its norm folded into scale and shift.
template <class Number>
inline void spatial_row(const Number* padded, index H, index stride, index k, const Number* weight, Number scale, Number shift,
                        index h, index W, Number* out) {
    using N = Store<Number>;
    using V = VectorOf<Number>;
    constexpr int L = LANES<Number>;
    const index plane = (H + k - 1) * stride;
    for (index w = 0; w < W; w += L) {
        V a{}, b{};
        for (index i = 0; i < k; ++i) {
            const Number *first = padded + (h + i) * stride + w, *second = first + plane;
            for (index j = 0; j < k; ++j) {
                a += N::load(first + j) * broadcast<V>(weight[i * k + j]);
                b += N::load(second + j) * broadcast<V>(weight[(k + i) * k + j]);
            }
        }
        const V sum = (a + b) * scale + shift;
        if (w + L <= W)
            N::save(out + w, sum);
        else
            for (index i = w; i < W; ++i) out[i] = sum[i - w];
    }
}

constexpr index CHUNK = ATTENDO_CHUNK;  // bytes of the map that go through all steps together

template <class T>
void attention(const Attention& g) {
    using S = Store<T>;
    using Number = NumberOf<T>;
    const Shape s = {g.samples, g.channels, g.height * g.width, g.channels_last != 0};
    const index C = s.channels, P = s.positions, H = g.height, W = g.width;
    const T *const x = static_cast<const T*>(g.x), *const residual = static_cast<const T*>(g.residual);
    T* const out = static_cast<T*>(g.out);
    const int threads = int(g.threads);
    const bool relu = g.relu != 0;
    const index bytes = s.size() * index(sizeof(T));
    const index together = least(s.samples, most(1, CHUNK / most(1, bytes)));
    const bool channel = g.fc1 || g.conv, spatial = g.spatial;
    const int both = g.mean && g.maximum ? 2 : 1;  // statistics per channel
    const index k = g.spatial_kernel, stride = W + k - 1 + LANES<T>, padded_size = 2 * (H + k - 1) * stride;
    Scratch<Number> pooled_(together * both * C), raw_(together * both * g.hidden);
    Scratch<Number> hidden_(together * g.hidden), gate_(together * C);
    Scratch<Number> padded_(spatial ? together * padded_size : 0), map_(spatial ? together * P : 0), weight_(2 * k * k);
    Scratch<Number> taps_(g.kernel_size);
    Number *const pooled = pooled_.data, *const raw = raw_.data, *const hidden = hidden_.data, *const gate = gate_.data;
    Number *const padded = padded_.data, *const map = map_.data, *const weight = weight_.data, *const taps = taps_.data;
    Number scale = 1, shift = 0;
    auto number = [](const void* p) { return S::get(*static_cast<const T*>(p)); };
    for (index i = 0; i < g.kernel_size; ++i) taps[i] = S::get(static_cast<const T*>(g.conv)[i]);
    if (spatial) {
        for (index i = 0; i < 2 * k * k; ++i) {
            const index from = g.maximum_first ? (i + k * k) % (2 * k * k) : i;  // padded holds the mean first
            weight[i] = S::get(static_cast<const T*>(g.spatial)[from]);
        }
        for (index i = 0; i < together * padded_size; ++i) padded[i] = 0;
        if (g.norm_mean) {
            scale = 1 / std::sqrt(number(g.norm_var) + Number(g.norm_eps));
            shift = -number(g.norm_mean) * scale;
            if (g.norm_weight) {
                scale *= number(g.norm_weight);
                shift = shift * number(g.norm_weight) + number(g.norm_bias);
            }
        }
    }
    const index rows = s.channels_last ? P : C, strip = most(1, least(rows, 8192 / most(1, s.channels_last ? C : P)));
    const index strips = ceil_of(rows, strip);
    // Statistics of a position do not depend on how positions are shared out: an equal part to each thread.
    const index parts = together % threads ? threads : 1;
    const index tile = least(TILE, ceil_of(ceil_of(P, parts), LANES<T>) * LANES<T>), tiles = ceil_of(P, tile);
    const bool alone = threads < 2 || s.samples * bytes < 65536;
    Scratch<Number> sums_(s.channels_last && channel ? together * 2 * C * 8 : 0);
    Number* const sums = sums_.data;
    const index B = most(1, least(8, P / 32)), block = ceil_of(P, B);
#pragma omp parallel num_threads(threads) if (!alone)
    for (index first = 0; first < s.samples; first += together) {
        const index count = least(together, s.samples - first);
        const T* const from = x + first * s.size();
        const index band = most(1, least(C, 8192 / most(1, P))), bands = ceil_of(C, band);
        if (channel && !s.channels_last) {
#pragma omp for schedule(static)
            for (index task = 0; task < count * bands; ++task) {
                const index n = task / bands;
                for (index c = task % bands * band; c < least(C, (task % bands + 1) * band); ++c) {
                    Number sum, best;
                    row_stats(from + (n * C + c) * P, P, &sum, g.maximum ? &best : nullptr);
                    Number* to = pooled + n * both * C + c;
                    if (g.mean) *to = sum / Number(P), to += C;
                    if (g.maximum) *to = best;
                }
            }
        } else if (channel) {
#pragma omp for schedule(static)
            for (index task = 0; task < count * B; ++task) {
                const index n = task / B, begin = least(P, task % B * block), end = least(P, begin + block);
                block_stats(from + (n * P + (begin < end ? begin : 0)) * C, end - begin, C, sums + task * 2 * C,
                            g.maximum ? sums + (task * 2 + 1) * C : nullptr);
            }
#pragma omp for schedule(static)
            for (index n = 0; n < count; ++n)
                for (index c = 0; c < C; ++c) {
                    Number sum = 0, best = g.maximum ? sums[(n * B * 2 + 1) * C + c] : 0;
                    for (index b = 0; b < B; ++b) {
                        sum += sums[(n * B + b) * 2 * C + c];
                        if (g.maximum) best = larger(best, sums[((n * B + b) * 2 + 1) * C + c]);
                    }
                    Number* to = pooled + n * both * C + c;
                    if (g.mean) *to = sum / Number(P), to += C;
                    if (g.maximum) *to = best;
                }
        }
        if (g.fc1) {
            const index part = 16;  // rows of a task
#pragma omp for schedule(static)
            for (index task = 0; task < ceil_of(g.hidden, part); ++task) {
                const index begin = task * part, end = least(g.hidden, begin + part);
                times_matrix(static_cast<const T*>(g.fc1), begin, end, C, pooled, count * both, raw, g.hidden);
                for (index n = 0; n < count; ++n)
                    for (index j = begin; j < end; ++j) {
                        const Number bias = g.fc1_bias ? S::get(static_cast<const T*>(g.fc1_bias)[j]) : 0;
                        Number sum = 0;
                        for (int i = 0; i < both; ++i) sum += rectified(raw[(n * both + i) * g.hidden + j] + bias);
                        hidden[n * g.hidden + j] = sum;  // fc2 is linear: the sum may pass through it once
                    }
            }
#pragma omp for schedule(static)
            for (index task = 0; task < ceil_of(C, 64); ++task) {
                const index begin = task * 64, end = least(C, begin + 64);
                times_matrix(static_cast<const T*>(g.fc2), begin, end, g.hidden, hidden, count, gate, C);
                for (index n = 0; n < count; ++n) {
                    for (index c = begin; g.fc2_bias && c < end; ++c)
                        gate[n * C + c] += S::get(static_cast<const T*>(g.fc2_bias)[c]) * Number(both);
                    sigmoid_of(gate + n * C + begin, end - begin);
                }
            }
        } else if (g.conv) {
            const index part = 256, pieces = ceil_of(C, part), half = g.kernel_size / 2;
#pragma omp for schedule(static)
            for (index task = 0; task < count * pieces; ++task) {
                const index n = task / pieces, begin = task % pieces * part, end = least(C, begin + part);
                Number* const to = gate + n * C;
                for (index c = begin; c < end; ++c) to[c] = 0;
                for (int i = 0; i < both; ++i)
                    for (index j = 0; j < g.kernel_size; ++j) {
                        const Number* const from_ = pooled + (n * both + i) * C + j - half;
                        const Number tap = taps[j];
                        const index last = least(end, C + half - j);
                        for (index c = most(begin, half - j); c < last; ++c) to[c] += tap * from_[c];
                    }
                sigmoid_of(to + begin, end - begin);
            }
        }
        if (spatial) {
#pragma omp for schedule(static)
            for (index task = 0; task < count * tiles; ++task) {
                const index n = task / tiles, begin = task % tiles * tile, width = least(tile, P - begin);
                Number mean[TILE], maximum[TILE];
                tile_of_stats<T>(from + n * s.size(), s, begin, width, channel ? gate + n * C : nullptr, mean, maximum, nullptr);
                Number* const plane = padded + n * padded_size + k / 2 * stride + k / 2;
                for (index p = 0; p < width; ++p) {
                    const index at = (begin + p) / W * stride + (begin + p) % W;
                    plane[at] = mean[p];
                    plane[padded_size / 2 + at] = maximum[p];
                }
            }
#pragma omp for schedule(static)
            for (index task = 0; task < count * H; ++task) {
                const index n = task / H, h = task % H;
                Number* const row = map + n * P + h * W;
                spatial_row(padded + n * padded_size, H, stride, k, weight, scale, shift, h, W, row);
                sigmoid_of(row, W);
            }
        }
#pragma omp for schedule(static)
        for (index task = 0; task < count * strips; ++task) {
            const index n = task / strips, begin = task % strips * strip, at = (first + n) * s.size();
            scaled_rows(x + at, s, begin, least(rows, begin + strip), channel ? gate + n * C : nullptr,
                        spatial ? map + n * P : nullptr, residual ? residual + at : nullptr, relu, out + at);
        }
    }
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
