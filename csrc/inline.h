// How a function that a launch calls for each element or lane is declared.
#pragma once

#ifdef __CUDACC__
#define FS_INLINE __host__ __device__ __forceinline__
#else
#define FS_INLINE inline
#endif
