// Which instruction sets this library was built for, which of them this machine runs, and the best of both.
#include "interface.h"

#include <cstring>

namespace attendo {
namespace plain {
extern const AttendoTable table;
}
#ifdef ATTENDO_X86
namespace avx2 {
extern const AttendoTable table;
}
namespace avx512 {
extern const AttendoTable table;
}
#endif
}  // namespace attendo

extern "C" {

// The table for an instruction set: "avx512", "avx2" or "plain"; null where the machine, or the build, has it not.
__attribute__((visibility("default"))) const AttendoTable* attendo_table(const char* name) {
    if (std::strcmp(name, "plain") == 0) return &attendo::plain::table;
#ifdef ATTENDO_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx2 && std::strcmp(name, "avx2") == 0) return &attendo::avx2::table;
    if (avx512 && std::strcmp(name, "avx512") == 0) return &attendo::avx512::table;
#endif
    return nullptr;
}

// Raised whenever the interface changes; the Python side refuses a library of another number.
__attribute__((visibility("default"))) int attendo_interface() { return 3; }
}
