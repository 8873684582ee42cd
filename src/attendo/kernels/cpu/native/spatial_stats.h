// Mean and maximum over channels of the gated map, one read of it: (N, C, P) -> (N, 2, P), mean first.
#pragma once

#include "channel_stats.h"

namespace attendo {
namespace ATTENDO_ISA {

// The product as PyTorch would store it: ties of the maximum depend on it.
template <class T, class X>
inline X product(X x, X gate) {
    return Store<T>::round(x * gate);
}

// One tile of positions of one sample, contiguous layout; mean, maximum and ties hold `width` numbers each.
template <class T, class X>
inline void tile_stats(X x, index C, index P, index width, const NumberOf<T>* gate, NumberOf<T>* mean, NumberOf<T>* maximum,
                       NumberOf<T>* ties) {
    using V = VectorOf<T>;
    using Number = NumberOf<T>;
    using N = Store<Number>;
    constexpr int L = LANES<T>;
    auto gated = [=](index c, index p) { return gate ? product<T>(x.row(c * P, c).number(p), gate[c]) : x.row(c * P, c).number(p); };
    for (index p = 0; p < width; ++p) {
        mean[p] = 0;
        maximum[p] = gated(0, p);
        if (ties) ties[p] = 0;
    }
    index c = 0;
    for (; !ties && c + 4 <= C; c += 4) {
        const X x0 = x.row(c * P, c), x1 = x0.row(P, 1), x2 = x1.row(P, 1), x3 = x2.row(P, 1);
        const Number g0 = gate ? gate[c] : 1, g1 = gate ? gate[c + 1] : 1, g2 = gate ? gate[c + 2] : 1,
                     g3 = gate ? gate[c + 3] : 1;
        index p = 0;
        for (; p + L <= width; p += L) {
            const V a = product<T>(x0.vector(p), broadcast<V>(g0)), b = product<T>(x1.vector(p), broadcast<V>(g1)),
                    d = product<T>(x2.vector(p), broadcast<V>(g2)), e = product<T>(x3.vector(p), broadcast<V>(g3));
            N::save(mean + p, N::load(mean + p) + ((a + b) + (d + e)));
            N::save(maximum + p, quick_larger(N::load(maximum + p), quick_larger(quick_larger(a, b), quick_larger(d, e))));
        }
        for (; p < width; ++p) {
            const Number a = product<T>(x0.number(p), g0), b = product<T>(x1.number(p), g1), d = product<T>(x2.number(p), g2),
                         e = product<T>(x3.number(p), g3);
            mean[p] += (a + b) + (d + e);
            maximum[p] = quick_larger(maximum[p], quick_larger(quick_larger(a, b), quick_larger(d, e)));
        }
    }
    for (; c < C; ++c) {
        const X row = x.row(c * P, c);
        const Number g = gate ? gate[c] : 1;
        index p = 0;
        for (; p + L <= width; p += L) {
            const V a = product<T>(row.vector(p), broadcast<V>(g)), top = N::load(maximum + p);
            N::save(mean + p, N::load(mean + p) + a);
            N::save(maximum + p, larger(top, a));
            if (ties) {
                const V count = N::load(ties + p), one = broadcast<V>(Number(1));
                N::save(ties + p, (a > top) | (a != a) ? one : (a == top ? count + one : count));
            }
        }
        for (; p < width; ++p) {
            const Number a = product<T>(row.number(p), g), top = maximum[p];
            mean[p] += a;
            maximum[p] = larger(top, a);
            if (ties) ties[p] = a > top || a != a ? 1 : (a == top ? ties[p] + 1 : ties[p]);
        }
    }
    for (index p = 0; p < width; ++p) {
        if (mean[p] != mean[p]) {
            maximum[p] = gated(0, p);
            for (index i = 1; i < C; ++i) maximum[p] = larger(maximum[p], gated(i, p));
        }
        mean[p] /= Number(C);
        if (ties && maximum[p] != maximum[p]) ties[p] = 0;
    }
}

// One position of the channels_last layout.
template <class T, class X>
inline void pixel_stats(X x, index C, const NumberOf<T>* gate, NumberOf<T>* mean, NumberOf<T>* maximum, NumberOf<T>* ties) {
    using V = VectorOf<T>;
    using Number = NumberOf<T>;
    using N = Store<Number>;
    constexpr int L = LANES<T>;
    auto vector = [=](index c) { return gate ? product<T>(x.vector(c), N::load(gate + c)) : x.vector(c); };
    auto number = [=](index c) { return gate ? product<T>(x.number(c), gate[c]) : x.number(c); };
    index c = 0;
    Number sum = 0, best = number(0);
    if (C >= L) {
        const V first = vector(0);
        V s0{}, s1{}, m0 = first, m1 = first;
        for (; c + 2 * L <= C; c += 2 * L) {
            const V a = vector(c), b = vector(c + L);
            s0 += a, s1 += b, m0 = quick_larger(m0, a), m1 = quick_larger(m1, b);
        }
        for (; c + L <= C; c += L) s0 += vector(c), m0 = quick_larger(m0, vector(c));
        sum = sum_of<T>(s0 + s1);
        best = largest_of<T>(quick_larger(m0, m1));
    }
    for (; c < C; ++c) sum += number(c), best = quick_larger(best, number(c));
    if (sum != sum) {
        best = number(0);
        for (index i = 1; i < C; ++i) best = larger(best, number(i));
    }
    *mean = sum / Number(C);
    *maximum = best;
    if (ties) {
        const V wanted = broadcast<V>(best);
        V count{};
        c = 0;
        for (; c + L <= C; c += L) count += at(vector(c), wanted);
        Number all = sum_of<T>(count);
        for (; c < C; ++c) all += at(number(c), best);
        *ties = all;
    }
}

constexpr index TILE = 1024;  // positions whose running numbers stay in the first-level cache

// Positions of one task: decided by the shape alone.
inline index tile_of(const Shape& s) {
    const index tile = s.samples >= 8 ? TILE : most(64, ceil_of(ceil_of(s.positions, 8), 64) * 64);
    return least(least(tile, TILE), s.positions);
}

// x: the source of one sample.
template <class T, class X>
void tile_of_stats(X x, const Shape& s, index from, index width, const NumberOf<T>* gate, NumberOf<T>* mean,
                   NumberOf<T>* maximum, NumberOf<T>* ties) {
    if (!s.channels_last) return tile_stats<T>(x.row(from, 0), s.channels, s.positions, width, gate, mean, maximum, ties);
    for (index p = 0; p < width; ++p)
        pixel_stats<T>(x.row((from + p) * s.channels, from + p), s.channels, gate, mean + p, maximum + p, ties ? ties + p : nullptr);
}

// gate: (N, C), or (1, C) with gate_samples = 1, or null. ties: (N, P) or null.
template <class T>
void spatial_stats(const T* x, Shape s, const T* gate, index gate_samples, T* stats, NumberOf<T>* ties, int threads) {
    using S = Store<T>;
    using Number = NumberOf<T>;
    const index C = s.channels, P = s.positions, tile = tile_of(s), tiles = ceil_of(P, tile);
    Scratch<Number> gates(gate ? gate_samples * C : 0);
    Number* const factor = gates.data;
    for (index i = 0; gate && i < gate_samples * C; ++i) factor[i] = S::get(gate[i]);
    parallel(threads, s.samples * tiles, s.elements() * index(sizeof(T)), [=](index task) {
        const index n = task / tiles, from = task % tiles * tile, width = least(tile, P - from);
        Number mean[TILE], maximum[TILE];
        tile_of_stats<T>(Plain<T>{x + n * s.size()}, s, from, width, factor ? factor + (gate_samples > 1 ? n * C : 0) : nullptr, mean,
                      maximum, ties ? ties + n * P + from : nullptr);
        T *means = stats + n * 2 * P + from, *maxima = means + P;
        for (index p = 0; p < width; ++p) means[p] = S::put(mean[p]), maxima[p] = S::put(maximum[p]);
    });
}

// Gradients of the map and, where there is a gate, of (N, C) gates; sums over samples are the caller's.
template <class T>
void spatial_stats_backward(const T* stats_gradient, const T* x, const T* gate, index gate_samples, const T* stats,
                            const NumberOf<T>* ties, T* gradient, NumberOf<T>* gate_gradient, Shape s, int threads) {
    using S = Store<T>;
    using V = VectorOf<T>;
    using Number = NumberOf<T>;
    using N = Store<Number>;
    constexpr int L = LANES<T>;
    const index C = s.channels, P = s.positions;
    const index bytes = s.elements() * index(sizeof(T));
    Scratch<Number> flats(s.samples * P), shares(s.samples * P), tops(s.samples * P), gates(s.samples * C);
    Number *const flat = flats.data, *const share = shares.data, *const top = tops.data, *const factor = gates.data;
    for (index n = 0; n < s.samples; ++n) {
        for (index p = 0; p < P; ++p) {
            const index mean = n * 2 * P + p, maximum = mean + P;
            flat[n * P + p] = S::get(stats_gradient[mean]) / Number(C);
            share[n * P + p] = S::get(stats_gradient[maximum]) / ties[n * P + p];
            top[n * P + p] = S::get(stats[maximum]);
        }
        for (index c = 0; c < C; ++c) factor[n * C + c] = gate ? S::get(gate[(gate_samples > 1 ? n * C : 0) + c]) : 1;
    }
    if (!s.channels_last) {
        parallel(threads, s.samples * C, bytes, [=](index row) {
            const index n = row / C;
            const Number *flats_ = flat + n * P, *shares_ = share + n * P, *tops_ = top + n * P;
            const T* from = x + row * P;
            T* to = gradient + row * P;
            const Number g = factor[row];
            const V gs = broadcast<V>(g);
            V sum{};
            index p = 0;
            for (; p + L <= P; p += L) {
                const V v = S::load(from + p);
                const V up = N::load(flats_ + p) + at(product<T>(v, gs), N::load(tops_ + p)) * N::load(shares_ + p);
                S::save(to + p, up * gs);
                sum += up * v;
            }
            Number total = sum_of<T>(sum);
            for (; p < P; ++p) {
                const Number v = S::get(from[p]), up = flats_[p] + at(product<T>(v, g), tops_[p]) * shares_[p];
                to[p] = S::put(up * g);
                total += up * v;
            }
            if (gate_gradient) gate_gradient[row] = total;
        });
        return;
    }
    const index B = blocks_of(s), block = ceil_of(P, B);
    Scratch<Number> partials(gate_gradient ? s.samples * B * C : 0);
    Number* const partial = partials.data;
    parallel(threads, s.samples * B, bytes, [=](index task) {
        const index n = task / B, begin = least(P, task % B * block), end = least(P, begin + block);
        Number* own = partial ? partial + task * C : nullptr;
        const Number* g = factor + n * C;
        for (index c = 0; own && c < C; ++c) own[c] = 0;
        for (index p = begin; p < end; ++p) {
            const T* from = x + (n * P + p) * C;
            T* to = gradient + (n * P + p) * C;
            const Number f = flat[n * P + p], sh = share[n * P + p], t = top[n * P + p];
            const V fs = broadcast<V>(f), shs = broadcast<V>(sh), ts = broadcast<V>(t);
            index c = 0;
            for (; c + L <= C; c += L) {
                const V v = S::load(from + c), gs = N::load(g + c);
                const V up = fs + at(product<T>(v, gs), ts) * shs;
                S::save(to + c, up * gs);
                if (own) N::save(own + c, N::load(own + c) + up * v);
            }
            for (; c < C; ++c) {
                const Number v = S::get(from[c]), up = f + at(product<T>(v, g[c]), t) * sh;
                to[c] = S::put(up * g[c]);
                if (own) own[c] += up * v;
            }
        }
    });
    for (index n = 0; gate_gradient && n < s.samples; ++n)
        for (index c = 0; c < C; ++c) {
            Number all = 0;
            for (index b = 0; b < B; ++b) all += partial[(n * B + b) * C + c];
            gate_gradient[n * C + c] = all;
        }
}

}  // namespace ATTENDO_ISA
}  // namespace attendo
