// Compiles one version of a function for each kind of processor, chosen when the program starts.
#ifndef HOOKLINE_SERVER_ENGINE_FOR_EACH_PROCESSOR_H_
#define HOOKLINE_SERVER_ENGINE_FOR_EACH_PROCESSOR_H_

// AVX2 comes with FMA and F16C on every processor that has it. The sanitizers start too late for that choice.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define HOOKLINE_FOR_EACH_PROCESSOR \
  __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default"), optimize("O3")))
#else
#define HOOKLINE_FOR_EACH_PROCESSOR
#endif

// A function that is inlined into another one is compiled for that one's processor.
#define HOOKLINE_INLINE inline __attribute__((always_inline))

#endif  // HOOKLINE_SERVER_ENGINE_FOR_EACH_PROCESSOR_H_
