// The part of DLPack's C exchange interface (version 1.3) that reads a tensor and names the current
// stream: torch >= 2.11 offers it as torch.Tensor.__dlpack_c_exchange_api__. It takes 40 ns where
// data_ptr(), stride() and dtype from Python take 500, and ties the library to no version of torch.
//
// Source: the DLPack 1.3 specification.
#pragma once

#include <cstdint>

namespace dlpack {

constexpr char kCapsule[] = "dlpack_exchange_api";
constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1, kCuda = 2;
constexpr uint8_t kFloat = 2;

struct Device {
  int32_t type, number;
  bool operator==(const Device& other) const {
    return type == other.type && number == other.number;
  }
};

struct DType {
  uint8_t code;  // kFloat, or 4: bfloat
  uint8_t bits;
  uint16_t lanes;
  bool operator==(const DType& other) const { return code == other.code && bits == other.bits; }
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;

  int64_t address() const { return reinterpret_cast<int64_t>(data) + byte_offset; }
};

// A tensor with a reference to it; the deleter lets it go.
struct ManagedTensor {
  uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedTensor* self);
  uint64_t flags;
  Tensor tensor;
};

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* previous;
  void* allocate;
  int (*managed_from_object)(void* object, ManagedTensor** out);  // 0, or -1 with an error set
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // 0, or -1 with a Python error set
  int (*current_stream)(int32_t device_type, int32_t device, void** out);  // likewise
};

}  // namespace dlpack
