// The table of one instruction set; compiled once for each, with ATTENDO_ISA and ATTENDO_BYTES from the command line.
#include "interface.h"

#include <type_traits>

#include "attention_backward.h"
#include "grouped_conv.h"

namespace attendo {
namespace ATTENDO_ISA {
namespace {

Shape shape_of(const AttendoShape& s) { return {s.samples, s.channels, s.height * s.width, s.channels_last != 0}; }

// Call f with a null pointer of the stored type, so that its lambda knows the type.
template <class F>
void by_dtype(int dtype, const F& f) {
    if (dtype == 0)
        f(static_cast<float*>(nullptr));
    else if (dtype == 1)
        f(static_cast<bfloat16*>(nullptr));
    else
        f(static_cast<double*>(nullptr));
}

template <class T>
const T* in(const void* p) {
    return static_cast<const T*>(p);
}
template <class T>
T* to(void* p) {
    return static_cast<T*>(p);
}

}  // namespace

static void channel_stats_(const AttendoShape* s, const void* x, void* mean, void* maximum, void* ties) {
    by_dtype(s->dtype, [=](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        channel_stats<T, T>(in<T>(x), shape_of(*s), to<T>(mean), to<T>(maximum), to<NumberOf<T>>(ties), s->threads);
    });
}

static void channel_stats_backward_(const AttendoShape* s, const void* mean_gradient, const void* maximum_gradient, const void* x,
                                    const void* maximum, const void* ties, void* gradient) {
    by_dtype(s->dtype, [=](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        channel_stats_backward<T>(in<T>(mean_gradient), in<T>(maximum_gradient), in<T>(x), in<T>(maximum), in<NumberOf<T>>(ties),
                                  to<T>(gradient), shape_of(*s), s->threads);
    });
}

static void spatial_stats_(const AttendoShape* s, const void* x, const void* gate, index gate_samples, void* stats, void* ties) {
    by_dtype(s->dtype, [=](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        spatial_stats<T>(in<T>(x), shape_of(*s), in<T>(gate), gate_samples, to<T>(stats), to<NumberOf<T>>(ties), s->threads);
    });
}

static void spatial_stats_backward_(const AttendoShape* s, const void* stats_gradient, const void* x, const void* gate,
                                    index gate_samples, const void* stats, const void* ties, void* gradient,
                                    void* gate_gradient) {
    by_dtype(s->dtype, [=](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        spatial_stats_backward<T>(in<T>(stats_gradient), in<T>(x), in<T>(gate), gate_samples, in<T>(stats), in<NumberOf<T>>(ties),
                                  to<T>(gradient), to<NumberOf<T>>(gate_gradient), shape_of(*s), s->threads);
    });
}

static void recalibrate_(const AttendoShape* s, const void* x, const void* channel, index channel_samples, const void* spatial,
                         index spatial_samples, const void* residual, std::int32_t relu, void* out) {
    by_dtype(s->dtype, [=](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        recalibrate<T>(in<T>(x), shape_of(*s), in<T>(channel), channel_samples, in<T>(spatial), spatial_samples, in<T>(residual),
                       relu != 0, to<T>(out), s->threads);
    });
}

static void recalibrate_backward_(const AttendoShape* s, const void* up, const void* x, const void* channel,
                                  index channel_samples, const void* spatial, index spatial_samples, const void* out,
                                  void* gradient, void* channel_gradient, void* spatial_gradient, void* residual_gradient) {
    by_dtype(s->dtype, [=](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        recalibrate_backward<T>(in<T>(up), in<T>(x), shape_of(*s), in<T>(channel), channel_samples, in<T>(spatial),
                                spatial_samples, in<T>(out), to<T>(gradient), to<NumberOf<T>>(channel_gradient),
                                to<NumberOf<T>>(spatial_gradient), to<T>(residual_gradient), s->threads);
    });
}

static void attention_(const void* call) {
    const Attention& g = *static_cast<const Attention*>(call);
    by_dtype(int(g.dtype), [&](auto* t) { attention<std::remove_pointer_t<decltype(t)>>(g); });
}

static void attention_backward_(const void* call) {
    const AttentionBackward& g = *static_cast<const AttentionBackward*>(call);
    by_dtype(int(g.dtype), [&](auto* t) { attention_backward<std::remove_pointer_t<decltype(t)>>(g); });
}

static void grouped_conv_(const AttendoShape* s, const void* x, const void* weight, index outputs, index groups, index kernel,
                          index stride, index padding, void* out) {
    const Grouped g = {s->channels, outputs, groups, s->height, s->width, kernel, stride, padding};
    by_dtype(s->dtype, [=](auto* t) {
        using T = std::remove_pointer_t<decltype(t)>;
        grouped_conv<T>(in<T>(x), s->samples, g, s->channels_last != 0, in<T>(weight), to<T>(out), s->threads);
    });
}

extern const AttendoTable table;
const AttendoTable table = {channel_stats_,       channel_stats_backward_, spatial_stats_, spatial_stats_backward_,
                            recalibrate_,         recalibrate_backward_,   attention_, attention_backward_, grouped_conv_};

}  // namespace ATTENDO_ISA
}  // namespace attendo
