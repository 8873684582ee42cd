// The channel half of an attention on what the channels were pooled to: two fully connected layers or a convolution over
// channels, and a sigmoid; forward and backward. A team of threads calls the steps together and meets after each.
#pragma once

#include "recalibrate.h"

namespace attendo {
namespace ATTENDO_ISA {

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

// Columns [from, end) of S vectors times a (rows, length) matrix: vector v gives to[v * length + column].
template <int S, class T>
inline void combined_rows(const T* matrix, index rows, index length, index from, index end, const NumberOf<T>* vectors,
                          NumberOf<T>* to) {
    using V = VectorOf<T>;
    using Number = NumberOf<T>;
    constexpr int L = LANES<T>;
    index c = from;
    for (; c + L <= end; c += L) {
        V sums[S] = {};
        for (index r = 0; r < rows; ++r) {
            const V row = Store<T>::load(matrix + r * length + c);
            for (int v = 0; v < S; ++v) sums[v] += row * broadcast<V>(vectors[v * rows + r]);
        }
        for (int v = 0; v < S; ++v) Store<Number>::save(to + v * length + c, sums[v]);
    }
    for (; c < end; ++c)
        for (int v = 0; v < S; ++v) {
            Number sum = 0;
            for (index r = 0; r < rows; ++r) sum += Store<T>::get(matrix[r * length + c]) * vectors[v * rows + r];
            to[v * length + c] = sum;
        }
}
template <class T>
inline void times_transposed(const T* matrix, index rows, index length, index from, index end, const NumberOf<T>* vectors,
                             index count, NumberOf<T>* to) {
    index v = 0;
    for (; v + 4 <= count; v += 4) combined_rows<4>(matrix, rows, length, from, end, vectors + v * rows, to + v * length);
    for (; v < count; ++v) combined_rows<1>(matrix, rows, length, from, end, vectors + v * rows, to + v * length);
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

template <class T>
struct ChannelGate {
    using S = Store<T>;
    using Number = NumberOf<T>;

    const T *fc1, *fc1_bias, *fc2, *fc2_bias;  // (hidden, C), (hidden)?, (C, hidden), (C)?: the shared MLP, or
    const T* conv;                             // (kernel_size): the shared convolution over channels
    index channels, hidden, kernel_size;
    index both;  // statistics per channel, 1 or 2

    static constexpr index PART = 64;  // columns or rows of a task

    // pooled (count, both, C) -> gate (count, C); on the way raw (count, both, hidden), what the ReLU is given, and
    // sum (count, hidden).
    void excite(const Number* pooled, index count, Number* raw, Number* sum, Number* gate) const {
        if (fc1)
            connected(pooled, count, raw, sum, gate);
        else
            convolved(pooled, count, gate);
    }

    // The gradient of the gate -> those of what the sigmoid was given (count, C), of raw (with an MLP), of pooled, and
    // of the convolution (count, kernel_size).
    void differentiate(const Number* gate_gradient, const Number* gate, const Number* pooled, const Number* raw, index count,
                       Number* logits_gradient, Number* sum_gradient, Number* raw_gradient, Number* pooled_gradient,
                       Number* conv_gradient) const {
        const index C = channels;
#pragma omp for schedule(static)
        for (index i = 0; i < count * C; ++i) logits_gradient[i] = gate_gradient[i] * (1 - gate[i]) * gate[i];
        if (fc1) {
#pragma omp for schedule(static)
            for (index task = 0; task < ceil_of(hidden, PART); ++task) {
                const index begin = task * PART, end = least(hidden, begin + PART);
                times_transposed(fc2, C, hidden, begin, end, logits_gradient, count, sum_gradient);
                for (index v = 0; v < count * both; ++v)
                    for (index j = begin; j < end; ++j)
                        raw_gradient[v * hidden + j] = passed(sum_gradient[v / both * hidden + j], raw[v * hidden + j]);
            }
#pragma omp for schedule(static)
            for (index task = 0; task < ceil_of(C, PART); ++task) {
                const index begin = task * PART, end = least(C, begin + PART);
                times_transposed(fc1, hidden, C, begin, end, raw_gradient, count * both, pooled_gradient);
            }
            return;
        }
        const index half = kernel_size / 2;
#pragma omp for schedule(static)
        for (index n = 0; n < count; ++n) {
            const Number* const up = logits_gradient + n * C;
            for (index i = 0; i < both; ++i) {
                const Number* const from = pooled + (n * both + i) * C;
                Number* const to = pooled_gradient + (n * both + i) * C;
                for (index c = 0; c < C; ++c) to[c] = 0;
                for (index j = 0; j < kernel_size; ++j) {
                    const Number tap = S::get(conv[j]);
                    const index begin = most(0, half - j), end = least(C, C + half - j);
                    Number sum = 0;
                    for (index c = begin; c < end; ++c) {
                        to[c + j - half] += tap * up[c];
                        sum += up[c] * from[c + j - half];
                    }
                    conv_gradient[n * kernel_size + j] = sum + (i ? conv_gradient[n * kernel_size + j] : 0);
                }
            }
        }
    }

  private:
    void connected(const Number* pooled, index count, Number* raw, Number* sum, Number* gate) const {
        const index part = 16;
#pragma omp for schedule(static)
        for (index task = 0; task < ceil_of(hidden, part); ++task) {
            const index begin = task * part, end = least(hidden, begin + part);
            times_matrix(fc1, begin, end, channels, pooled, count * both, raw, hidden);
            for (index n = 0; n < count; ++n)
                for (index j = begin; j < end; ++j) {
                    const Number bias = fc1_bias ? S::get(fc1_bias[j]) : 0;
                    Number all = 0;
                    for (index i = 0; i < both; ++i) all += rectified(raw[(n * both + i) * hidden + j] += bias);
                    sum[n * hidden + j] = all;  // fc2 is linear: the sum may pass through it once
                }
        }
#pragma omp for schedule(static)
        for (index task = 0; task < ceil_of(channels, PART); ++task) {
            const index begin = task * PART, end = least(channels, begin + PART);
            times_matrix(fc2, begin, end, hidden, sum, count, gate, channels);
            for (index n = 0; n < count; ++n) {
                for (index c = begin; fc2_bias && c < end; ++c) gate[n * channels + c] += S::get(fc2_bias[c]) * Number(both);
                sigmoid_of(gate + n * channels + begin, end - begin);
            }
        }
    }

    void convolved(const Number* pooled, index count, Number* gate) const {
        const index C = channels, part = 256, pieces = ceil_of(C, part), half = kernel_size / 2;
#pragma omp for schedule(static)
        for (index task = 0; task < count * pieces; ++task) {
            const index n = task / pieces, begin = task % pieces * part, end = least(C, begin + part);
            Number* const to = gate + n * C;
            for (index c = begin; c < end; ++c) to[c] = 0;
            for (index i = 0; i < both; ++i)
                for (index j = 0; j < kernel_size; ++j) {
                    const Number* const from = pooled + (n * both + i) * C + j - half;
                    const Number tap = S::get(conv[j]);
                    const index last = least(end, C + half - j);
                    for (index c = most(begin, half - j); c < last; ++c) to[c] += tap * from[c];
                }
            sigmoid_of(to + begin, end - begin);
        }
    }
};

}  // namespace ATTENDO_ISA
}  // namespace attendo
