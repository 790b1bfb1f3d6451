// Which GPU the calling thread uses, without a context on a GPU that nothing else uses.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fused_sched {

// A kernel as a launch takes it: CUDA 12's header has a form by type which no function's type fits.
// The stand-in for CUDA, which has no such header, is told the type.
template <class... P>
auto entry_of(void (*kernel)(P...)) {
#ifdef __NVCC__
  return reinterpret_cast<const void*>(kernel);
#else
  return kernel;
#endif
}

// Functions of the driver: the library loads without one, and is not linked with it.
struct Driver {
  CUresult (*state)(CUdevice, unsigned*, int*);
  CUresult (*retain)(CUcontext*, CUdevice);
  CUresult (*release)(CUdevice);
  CUresult (*push)(CUcontext);
  CUresult (*pop)(CUcontext*);
  cudaError_t error = cudaSuccess;

  static const Driver& get() {
    static const Driver driver;
    return driver;
  }

 private:
  Driver() {
    find("cuDevicePrimaryCtxGetState", state);
    find("cuDevicePrimaryCtxRetain", retain);
    find("cuDevicePrimaryCtxRelease", release);
    find("cuCtxPushCurrent", push);
    find("cuCtxPopCurrent", pop);
  }

  template <class F>
  void find(const char* name, F& function) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSuccess;
#if CUDART_VERSION >= 12050
    cudaError_t failed =
        cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status);
#else
    cudaError_t failed = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
#endif
    if (failed == cudaSuccess && found == nullptr) failed = cudaErrorNotSupported;
    if (failed != cudaSuccess) error = failed;
    function = reinterpret_cast<F>(found);
  }
};

// Whether anything in this process uses a GPU; true also where CUDA does not say.
inline bool in_use(int64_t device) {
  const Driver& driver = Driver::get();
  unsigned flags;
  int active;
  if (driver.error != cudaSuccess) return true;
  if (driver.state(static_cast<CUdevice>(device), &flags, &active) != CUDA_SUCCESS) return true;
  return active != 0;
}

// The calling thread's device until the end of a scope. To set the thread's own device anew at the
// end would make a context, of hundreds of megabytes, on a GPU that nothing may use: so the other
// device's context is laid on top of the thread's, and taken away.
class OnDevice {
 public:
  explicit OnDevice(int64_t device) {
    int present = -1;
    error = cudaGetDevice(&present);
    if (error == cudaSuccess && present != device) error = enter(static_cast<CUdevice>(device));
  }

  ~OnDevice() {
    if (!entered_) return;
    CUcontext context;
    Driver::get().pop(&context);
    Driver::get().release(device_);
  }

  OnDevice(const OnDevice&) = delete;

  cudaError_t error;

 private:
  cudaError_t enter(CUdevice device) {
    const Driver& driver = Driver::get();
    if (driver.error != cudaSuccess) return driver.error;
    CUcontext context;
    if (driver.retain(&context, device) != CUDA_SUCCESS) return cudaErrorInvalidDevice;
    if (driver.push(context) != CUDA_SUCCESS) {
      driver.release(device);
      return cudaErrorInvalidDevice;
    }
    device_ = device;
    entered_ = true;
    return cudaSuccess;
  }

  CUdevice device_ = 0;
  bool entered_ = false;
};

}  // namespace fused_sched
