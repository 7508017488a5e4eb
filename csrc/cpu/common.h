// Shared by the CPU kernels: plain C++, no torch.
#pragma once

#include <cstdint>

// The body is compiled for several instruction sets and the best one for this machine is chosen at load time. Only
// named functions can have it (not lambdas), and only loops inside the function itself profit.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define MB_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MB_CLONES
#endif
