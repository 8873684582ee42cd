// Rows of elements: where they come from, and how a loop goes along one.
#pragma once

#include "vectors.h"

namespace attendo {
namespace ATTENDO_ISA {

// What belongs to the elements of a row: one number for all of them, or one for each.
template <class T, bool ALONG>
struct Factor {
    const NumberOf<T>* p;
    VectorOf<T> vector(index i) const { return ALONG ? Store<NumberOf<T>>::load(p + i) : broadcast<VectorOf<T>>(*p); }
    NumberOf<T> number(index i) const { return p[ALONG ? i : 0]; }
    VectorOf<T> at(VectorOf<T>*, index i) const { return vector(i); }
    NumberOf<T> at(NumberOf<T>*, index i) const { return number(i); }
    Factor from(index i) const { return {p ? p + i : p}; }
};

// Call f for every register of a row and every number that is left, with a null pointer that says which of them it is.
template <class T, class F>
inline void along(index n, const F& f) {
    index i = 0;
    for (; i + LANES<T> <= n; i += LANES<T>) f(static_cast<VectorOf<T>*>(nullptr), i);
    for (; i < n; ++i) f(static_cast<NumberOf<T>*>(nullptr), i);
}
template <class T>
inline VectorOf<T> got(VectorOf<T>*, const T* from) {
    return Store<T>::load(from);
}
template <class T>
inline NumberOf<T> got(NumberOf<T>*, const T* from) {
    return Store<T>::get(*from);
}
template <class T>
inline void put(T* to, VectorOf<T> v) {
    Store<T>::save(to, v);
}
template <class T>
inline void put(T* to, NumberOf<T> v) {
    *to = Store<T>::put(v);
}

// Where the elements of a row come from: memory, or memory by way of a norm, rounded as if it had been stored.
// row(offset, i): the source of the i-th of several rows, `offset` elements further on.
template <class T>
struct Plain {
    const T* p;
    VectorOf<T> vector(index i) const { return Store<T>::load(p + i); }
    NumberOf<T> number(index i) const { return Store<T>::get(p[i]); }
    VectorOf<T> at(VectorOf<T>*, index i) const { return vector(i); }
    NumberOf<T> at(NumberOf<T>*, index i) const { return number(i); }
    Plain row(index offset, index) const { return {p + offset}; }
};
template <class T, bool ALONG>
struct Normed {
    const T* p;
    Factor<T, ALONG> scale, shift;
    VectorOf<T> vector(index i) const { return Store<T>::round(Store<T>::load(p + i) * scale.vector(i) + shift.vector(i)); }
    NumberOf<T> number(index i) const { return Store<T>::round(Store<T>::get(p[i]) * scale.number(i) + shift.number(i)); }
    VectorOf<T> at(VectorOf<T>*, index i) const { return vector(i); }
    NumberOf<T> at(NumberOf<T>*, index i) const { return number(i); }
    Normed row(index offset, index i) const { return {p + offset, scale.from(ALONG ? 0 : i), shift.from(ALONG ? 0 : i)}; }
};

}  // namespace ATTENDO_ISA
}  // namespace attendo
