// Compiled with a toolkit's cuda.h: the structs and numbers that package driver
// declares itself are the toolkit's.
#include <cuda.h>
#include <stddef.h>

#include "../internal/driver/calls.h"

#define SIZE(ours, theirs) _Static_assert(sizeof(ours) == sizeof(theirs), #theirs)
#define AT(ours, a, theirs, b) _Static_assert(offsetof(ours, a) == offsetof(theirs, b), #theirs "." #b)
#define IS(name, value) _Static_assert(name == value, #name)

SIZE(lc_location, CUmemLocation);
SIZE(lc_memory_prop, CUmemAllocationProp);
AT(lc_memory_prop, location, CUmemAllocationProp, location);
SIZE(lc_access, CUmemAccessDesc);
AT(lc_access, flags, CUmemAccessDesc, flags);
SIZE(lc_pool_props, CUmemPoolProps);
AT(lc_pool_props, location, CUmemPoolProps, location);
SIZE(lc_launch_attribute, CUlaunchAttribute);
AT(lc_launch_attribute, value, CUlaunchAttribute, value);
SIZE(lc_launch_config, CUlaunchConfig);
AT(lc_launch_config, shared, CUlaunchConfig, sharedMemBytes);
AT(lc_launch_config, stream, CUlaunchConfig, hStream);
AT(lc_launch_config, attributes, CUlaunchConfig, attrs);
AT(lc_launch_config, attribute_count, CUlaunchConfig, numAttrs);
SIZE(lc_tensor_map, CUtensorMap);

IS(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, 4);
IS(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, 6);
IS(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 8);
IS(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 0);
IS(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, 1);
IS(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, 3);
IS(CU_FUNC_ATTRIBUTE_NUM_REGS, 4);
IS(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, 4);
IS(CU_STREAM_CAPTURE_MODE_RELAXED, 2);
IS(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED, 1);
IS(CU_MEM_ACCESS_FLAGS_PROT_READWRITE, 3);
IS(CU_MEM_ALLOCATION_TYPE_PINNED, 1);
IS(CU_MEM_LOCATION_TYPE_DEVICE, 1);
IS(CU_MEMHOSTALLOC_PORTABLE, 1);
IS(CU_EVENT_BLOCKING_SYNC, 1);
IS(CU_EVENT_DISABLE_TIMING, 2);
IS(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 75);
IS(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 76);
IS(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 16);
IS(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 38);
IS(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 81);
IS(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 97);
IS(CU_TENSOR_MAP_DATA_TYPE_UINT8, 0);
IS(CU_TENSOR_MAP_DATA_TYPE_UINT16, 1);
IS(CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 6);
IS(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 7);
IS(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 9);
IS(CU_TENSOR_MAP_SWIZZLE_128B, 3);
IS(CU_TENSOR_MAP_L2_PROMOTION_L2_256B, 3);
IS(CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA, 1);
IS(CUDA_ERROR_ECC_UNCORRECTABLE, 214);
IS(CUDA_ERROR_NVLINK_UNCORRECTABLE, 220);
IS(CUDA_ERROR_ILLEGAL_ADDRESS, 700);
IS(CUDA_ERROR_LAUNCH_TIMEOUT, 702);
IS(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709);
IS(CUDA_ERROR_ASSERT, 710);
IS(CUDA_ERROR_HARDWARE_STACK_ERROR, 714);
IS(CUDA_ERROR_ILLEGAL_INSTRUCTION, 715);
IS(CUDA_ERROR_MISALIGNED_ADDRESS, 716);
IS(CUDA_ERROR_INVALID_ADDRESS_SPACE, 717);
IS(CUDA_ERROR_INVALID_PC, 718);
IS(CUDA_ERROR_LAUNCH_FAILED, 719);
