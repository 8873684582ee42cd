// Mean and maximum over positions, one read of the map: (N, C, P) -> (N, C) each, P = H W positions.
#pragma once

#include "rows.h"

namespace attendo {
namespace ATTENDO_ISA {

struct Shape {
    index samples, channels, positions;
    bool channels_last;
    index size() const { return channels * positions; }
    index elements() const { return samples * channels * positions; }
};

// The maximum of n numbers, one by one: the way for those with a NaN among them.
template <class T, class X>
inline NumberOf<T> careful_maximum(X x, index n) {
    NumberOf<T> best = x.number(0);
    for (index i = 1; i < n; ++i) best = larger(best, x.number(i));
    return best;
}

// One channel of the contiguous layout.
template <class T, class X>
inline void row_stats(X x, index n, NumberOf<T>* sum, NumberOf<T>* maximum) {
    using V = VectorOf<T>;
    constexpr int L = LANES<T>;
    if (n < L) {
        NumberOf<T> total = 0;
        for (index i = 0; i < n; ++i) total += x.number(i);
        *sum = total;
        if (maximum) *maximum = careful_maximum<T>(x, n);
        return;
    }
    const V last = x.vector(n - L);  // overlaps what came before where n is no multiple of L
    index i = 0;
    V s0 = last_of<T>(last, n % L), s1{}, s2{}, s3{}, m0 = last, m1 = last, m2 = last, m3 = last;
    for (; i + 4 * L <= n; i += 4 * L) {
        const V a = x.vector(i), b = x.vector(i + L), c = x.vector(i + 2 * L), d = x.vector(i + 3 * L);
        s0 += a, s1 += b, s2 += c, s3 += d;
        if (maximum) m0 = quick_larger(m0, a), m1 = quick_larger(m1, b), m2 = quick_larger(m2, c), m3 = quick_larger(m3, d);
    }
    for (; i + L <= n; i += L) {
        const V a = x.vector(i);
        s0 += a;
        if (maximum) m0 = quick_larger(m0, a);
    }
    const NumberOf<T> total = sum_of<T>((s0 + s1) + (s2 + s3));
    *sum = total;
    if (!maximum) return;
    *maximum = total == total ? largest_of<T>(quick_larger(quick_larger(m0, m1), quick_larger(m2, m3))) : careful_maximum<T>(x, n);
}

template <class T>
inline NumberOf<T> row_ties(const T* x, index n, NumberOf<T> maximum) {
    using V = VectorOf<T>;
    constexpr int L = LANES<T>;
    index i = 0;
    V ties{};
    const V wanted = broadcast<V>(maximum);
    for (; i + L <= n; i += L) ties += at(Store<T>::load(x + i), wanted);
    NumberOf<T> count = sum_of<T>(ties);
    for (; i < n; ++i) count += at(Store<T>::get(x[i]), maximum);
    return count;
}

// Some positions of the channels_last layout: sums and maxima of every channel, written over what was there.
template <class T, class X>
inline void block_stats(X x, index positions, index channels, NumberOf<T>* sum, NumberOf<T>* maximum) {
    using N = Store<NumberOf<T>>;
    using V = VectorOf<T>;
    constexpr int L = LANES<T>;
    for (index c = 0; c < channels; ++c) {
        sum[c] = 0;
        if (maximum) maximum[c] = x.number(c);
    }
    index p = 0;
    for (; p + 4 <= positions; p += 4) {
        const X x0 = x.row(p * channels, p), x1 = x0.row(channels, 1), x2 = x1.row(channels, 1), x3 = x2.row(channels, 1);
        index c = 0;
        for (; c + L <= channels; c += L) {
            const V a = x0.vector(c), b = x1.vector(c), d = x2.vector(c), e = x3.vector(c);
            N::save(sum + c, N::load(sum + c) + ((a + b) + (d + e)));
            if (maximum) N::save(maximum + c, quick_larger(N::load(maximum + c), quick_larger(quick_larger(a, b), quick_larger(d, e))));
        }
        for (; c < channels; ++c) {
            const NumberOf<T> a = x0.number(c), b = x1.number(c), d = x2.number(c), e = x3.number(c);
            sum[c] += (a + b) + (d + e);
            if (maximum) maximum[c] = quick_larger(maximum[c], quick_larger(quick_larger(a, b), quick_larger(d, e)));
        }
    }
    for (; p < positions; ++p)
        for (index c = 0; c < channels; ++c) {
            const NumberOf<T> a = x.row(p * channels, p).number(c);
            sum[c] += a;
            if (maximum) maximum[c] = quick_larger(maximum[c], a);
        }
    for (index c = 0; maximum && c < channels; ++c)
        if (sum[c] != sum[c] && positions > 0) {
            maximum[c] = x.number(c);
            for (index i = 1; i < positions; ++i) maximum[c] = larger(maximum[c], x.row(i * channels, i).number(c));
        }
}

// Into how many blocks of positions a sample is cut: decided by the shape alone, so that sums do not depend on threads.
inline index blocks_of(const Shape& s) { return s.samples >= 8 ? 1 : most(1, least(8, s.positions / 32)); }

// Mean and maximum of every (sample, channel); each pointer may be null. Ties: how many positions are at the maximum.
template <class T, class Out>
void channel_stats(const T* x, Shape s, Out* mean, Out* maximum, NumberOf<T>* ties, int threads) {
    using Number = NumberOf<T>;
    using O = Store<Out>;
    const index C = s.channels, P = s.positions;
    const index bytes = s.elements() * index(sizeof(T));
    if (!s.channels_last) {
        const index together = most(1, least(16384 / most(1, P), C));  // rows of one task
        const index rows = s.samples * C;
        parallel(threads, ceil_of(rows, together), bytes, [=](index task) {
            for (index row = task * together; row < least(rows, (task + 1) * together); ++row) {
                Number sum, best;
                row_stats<T>(Plain<T>{x + row * P}, P, &sum, maximum ? &best : nullptr);
                if (mean) mean[row] = O::put(sum / Number(P));
                if (maximum) maximum[row] = O::put(best);
                if (ties) ties[row] = row_ties(x + row * P, P, best);
            }
        });
        return;
    }
    const index B = blocks_of(s), block = ceil_of(P, B);
    Scratch<Number> sums(s.samples * B * C), maxima(maximum ? s.samples * B * C : 0), counts(ties ? s.samples * B * C : 0);
    Number *const sum = sums.data, *const best = maxima.data, *const count = counts.data;
    parallel(threads, s.samples * B, bytes, [=](index task) {
        const index n = task / B, from = least(P, task % B * block), to = least(P, from + block);
        // an empty block repeats the sample's first position with a sum of 0
        block_stats<T>(Plain<T>{x + (n * P + (from < to ? from : 0)) * C}, to - from, C, sum + task * C,
                       best ? best + task * C : nullptr);
    });
    for (index n = 0; n < s.samples; ++n)
        for (index b = 1; b < B; ++b)
            for (index c = 0; c < C; ++c) {
                sum[n * B * C + c] += sum[(n * B + b) * C + c];
                if (best) best[n * B * C + c] = larger(best[n * B * C + c], best[(n * B + b) * C + c]);
            }
    if (ties) {
        parallel(threads, s.samples * B, bytes, [=](index task) {
            const index n = task / B, from = least(P, task % B * block), to = least(P, from + block);
            const Number* top = best + n * B * C;
            Number* own = count + task * C;
            for (index c = 0; c < C; ++c) own[c] = 0;
            for (index p = from; p < to; ++p)
                for (index c = 0; c < C; ++c) own[c] += at(Store<T>::get(x[(n * P + p) * C + c]), top[c]);
        });
    }
    for (index n = 0; n < s.samples; ++n)
        for (index c = 0; c < C; ++c) {
            if (mean) mean[n * C + c] = O::put(sum[n * B * C + c] / Number(P));
            if (maximum) maximum[n * C + c] = O::put(best[n * B * C + c]);
            if (ties) {
                Number all = 0;
                for (index b = 0; b < B; ++b) all += count[(n * B + b) * C + c];
                ties[n * C + c] = all;
            }
        }
}

// The gradient of the map: mean shares its own among all positions, the maximum among those that reach it.
// Where the maximum is NaN no position equals it, and 0 ties make the gradient NaN, as in PyTorch.
template <class T>
void channel_stats_backward(const T* mean_gradient, const T* maximum_gradient, const T* x, const T* maximum,
                            const NumberOf<T>* ties, T* gradient, Shape s, int threads) {
    using S = Store<T>;
    using V = VectorOf<T>;
    using Number = NumberOf<T>;
    constexpr int L = LANES<T>;
    const index C = s.channels, P = s.positions;
    const index bytes = s.elements() * index(sizeof(T));
    Scratch<Number> flats(s.samples * C), shares(s.samples * C), tops(s.samples * C);
    Number *const flat = flats.data, *const share = shares.data, *const top = tops.data;
    for (index i = 0; i < s.samples * C; ++i) {
        flat[i] = mean_gradient ? S::get(mean_gradient[i]) / Number(P) : 0;
        share[i] = maximum_gradient ? S::get(maximum_gradient[i]) / ties[i] : 0;
        top[i] = S::get(maximum[i]);
    }
    if (!s.channels_last) {
        parallel(threads, s.samples * C, bytes, [=](index row) {
            const V flats_ = broadcast<V>(flat[row]), shares_ = broadcast<V>(share[row]), tops_ = broadcast<V>(top[row]);
            const T* from = x + row * P;
            T* to = gradient + row * P;
            index p = 0;
            for (; p + L <= P; p += L) S::save(to + p, flats_ + at(S::load(from + p), tops_) * shares_);
            for (; p < P; ++p) to[p] = S::put(flat[row] + at(S::get(from[p]), top[row]) * share[row]);
        });
        return;
    }
    parallel(threads, s.samples * P, bytes, [=](index task) {
        const Number *flats_ = flat + task / P * C, *shares_ = share + task / P * C, *tops_ = top + task / P * C;
        const T* from = x + task * C;
        T* to = gradient + task * C;
        index c = 0;
        using N = Store<Number>;
        for (; c + L <= C; c += L)
            S::save(to + c, N::load(flats_ + c) + at(S::load(from + c), N::load(tops_ + c)) * N::load(shares_ + c));
        for (; c < C; ++c) to[c] = S::put(flats_[c] + at(S::get(from[c]), tops_[c]) * shares_[c]);
    });
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
