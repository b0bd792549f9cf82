"""Bodies of Metal kernels on the CPU: Metal is C++ with words of its own, which are defined here.

A group of threads is one of real threads, so that what they share and where they wait is run, too.
The signature is the one that MLX writes around a body.
"""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

WORDS = """
#include <cmath>
#include <pthread.h>
#define device
#define constant
#define threadgroup static
typedef unsigned int uint;
struct uint3 { uint x, y, z; };
namespace mem_flags { enum { mem_threadgroup }; }
namespace metal {
inline float rint(float x) { return ::rintf(x); }
inline float ceil(float x) { return ::ceilf(x); }
inline float clamp(float x, float low, float high) { return ::fminf(::fmaxf(x, low), high); }
}
static pthread_barrier_t all_of_group;
inline void threadgroup_barrier(int) { pthread_barrier_wait(&all_of_group); }
"""
KERNEL = """
template <{template}>
void kernel({pointers}, const constant int* {shape_of}_shape,
            uint3 thread_position_in_grid, uint thread_index_in_threadgroup,
            uint3 threads_per_threadgroup) {{
{body}
}}
"""
START = """
struct Thread{index} {{ float** arrays; const int* shape; uint first, place, size; }};
static void* start{index}(void* given) {{
    const Thread{index} my = *static_cast<Thread{index}*>(given);
    kernel<{arguments}>({arrays}, my.shape,
        uint3{{my.first + my.place, 0, 0}}, my.place, uint3{{my.size, 1, 1}});
    return nullptr;
}}
extern "C" void run{index}(float** arrays, const int* shape, uint rows, uint together) {{
    for (uint first = 0; first < rows; first += together) {{
        const uint size = rows - first < together ? rows - first : together;
        pthread_t threads[64];
        Thread{index} given[64];
        pthread_barrier_init(&all_of_group, nullptr, size);
        for (uint i = 0; i < size; ++i) {{
            given[i] = {{arrays, shape, first, i, size}};
            pthread_create(&threads[i], nullptr, start{index}, &given[i]);
        }}
        for (uint i = 0; i < size; ++i) pthread_join(threads[i], nullptr);
        pthread_barrier_destroy(&all_of_group);
    }}
}}
"""


class MetalInCpp:
    """A kernel as of `mx.fast.metal_kernel`, with some choices of its template's arguments."""

    def __init__(self, folder, choices, header, *, input_names, output_names, source):
        compiler = shutil.which("c++")
        if compiler is None:
            pytest.skip("no C++ compiler, which would compile the bodies of Metal kernels")
        names = [*input_names, *output_names]
        kinds = {name: type(value).__name__ for name, value in choices[0].items()}
        (shape_of,) = (name for name in names if f"{name}_shape" in source)
        text = (
            WORDS
            + header
            + KERNEL.format(
                template=", ".join(f"{kind} {name}" for name, kind in kinds.items()),
                pointers=", ".join(
                    [f"const device float* {name}" for name in input_names]
                    + [f"device float* {name}" for name in output_names]
                ),
                shape_of=shape_of,
                body=source,
            )
        )
        for index, choice in enumerate(choices):
            arguments = ", ".join(str(value).lower() for value in choice.values())
            arrays = ", ".join(f"my.arrays[{place}]" for place in range(len(names)))
            text += START.format(index=index, arguments=arguments, arrays=arrays)
        path = folder / f"{shape_of}.cpp"
        path.write_text(text)
        library = path.with_suffix(".so")
        command = [
            compiler,
            "-std=c++17",
            "-Wall",
            "-Werror",
            "-fPIC",
            "-shared",
            "-pthread",
            "-O1",
        ]
        subprocess.run([*command, path, "-o", library], check=True)
        self._library, self._choices = ctypes.CDLL(str(library)), list(choices)
        self._shape_of = names.index(shape_of)

    def __call__(self, *, inputs, template, grid, threadgroup, output_shapes, output_dtypes):
        run = getattr(self._library, f"run{self._choices.index(dict(template))}")
        arrays = [np.ascontiguousarray(array, dtype=np.float32) for array in inputs]
        arrays += [np.full(shape, np.nan, np.float32) for shape in output_shapes]
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        shape = (ctypes.c_int * 2)(*arrays[self._shape_of].shape)
        run(pointers, shape, grid[0], threadgroup[0])
        return arrays[len(inputs) :]
