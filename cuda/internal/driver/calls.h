// The calls of the driver that package driver makes itself. They are declared
// here and looked up when the library is loaded, so that building needs no
// cuda.h and starting needs no libcuda. Handles are void *, device addresses
// uint64_t; enumerations are int.
#ifndef LONGCTX_CALLS_H
#define LONGCTX_CALLS_H

#include <stddef.h>
#include <stdint.h>

// CUmemLocation.
typedef struct {
	int type, id;
} lc_location;

// CUmemAllocationProp.
typedef struct {
	int type, handle_types;
	lc_location location;
	void *win32;
	unsigned char compression, rdma;
	unsigned short usage;
	unsigned char reserved[4];
} lc_memory_prop;

// CUmemAccessDesc.
typedef struct {
	lc_location location;
	int flags;
} lc_access;

// CUmemPoolProps.
typedef struct {
	int type, handle_types;
	lc_location location;
	void *win32;
	size_t max_size;
	unsigned char reserved[56];
} lc_pool_props;

// CUlaunchAttribute.
typedef struct {
	int id;
	char pad[4];
	union {
		char pad[64];
		struct {
			unsigned x, y, z;
		} cluster;
		int flag;
	} value;
} lc_launch_attribute;

// CUlaunchConfig.
typedef struct {
	unsigned grid_x, grid_y, grid_z;
	unsigned block_x, block_y, block_z;
	unsigned shared;
	void *stream;
	lc_launch_attribute *attributes;
	unsigned attribute_count;
} lc_launch_config;

// CUtensorMap.
typedef struct {
	_Alignas(64) uint64_t opaque[16];
} lc_tensor_map;

// X(name, symbol in the library, version of CUDA that it is asked for, parameters)
#define LC_CALLS(X) \
	X(cuInit, cuInit, 2000, (unsigned)) \
	X(cuDriverGetVersion, cuDriverGetVersion, 2020, (int *)) \
	X(cuGetErrorName, cuGetErrorName, 6000, (int, const char **)) \
	X(cuGetErrorString, cuGetErrorString, 6000, (int, const char **)) \
	X(cuDeviceGetPCIBusId, cuDeviceGetPCIBusId, 4010, (char *, int, int)) \
	X(cuCtxSetCurrent, cuCtxSetCurrent, 4000, (void *)) \
	X(cuStreamQuery, cuStreamQuery, 2000, (void *)) \
	X(cuStreamWaitEvent, cuStreamWaitEvent, 3020, (void *, void *, unsigned)) \
	X(cuStreamBeginCapture, cuStreamBeginCapture_v2, 10010, (void *, int)) \
	X(cuStreamEndCapture, cuStreamEndCapture, 10000, (void *, void **)) \
	X(cuEventRecord, cuEventRecord, 2000, (void *, void *)) \
	X(cuEventQuery, cuEventQuery, 2000, (void *)) \
	X(cuEventSynchronize, cuEventSynchronize, 2000, (void *)) \
	X(cuEventElapsedTime, cuEventElapsedTime, 2000, (float *, void *, void *)) \
	X(cuMemHostAlloc, cuMemHostAlloc, 2020, (void **, size_t, unsigned)) \
	X(cuMemFreeHost, cuMemFreeHost, 2000, (void *)) \
	X(cuMemPoolCreate, cuMemPoolCreate, 11020, (void **, const lc_pool_props *)) \
	X(cuMemPoolDestroy, cuMemPoolDestroy, 11020, (void *)) \
	X(cuMemPoolSetAttribute, cuMemPoolSetAttribute, 11020, (void *, int, void *)) \
	X(cuMemPoolTrimTo, cuMemPoolTrimTo, 11020, (void *, size_t)) \
	X(cuMemAllocFromPoolAsync, cuMemAllocFromPoolAsync, 11020, (uint64_t *, size_t, void *, void *)) \
	X(cuMemFreeAsync, cuMemFreeAsync, 11020, (uint64_t, void *)) \
	X(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, 3020, (uint64_t, const void *, size_t, void *)) \
	X(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, 3020, (void *, uint64_t, size_t, void *)) \
	X(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, 3020, (uint64_t, uint64_t, size_t, void *)) \
	X(cuMemsetD8Async, cuMemsetD8Async, 3020, (uint64_t, unsigned char, size_t, void *)) \
	X(cuFuncSetAttribute, cuFuncSetAttribute, 9000, (void *, int, int)) \
	X(cuFuncGetParamInfo, cuFuncGetParamInfo, 12040, (void *, size_t, size_t *, size_t *)) \
	X(cuLaunchKernel, cuLaunchKernel, 4000, (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **)) \
	X(cuLaunchKernelEx, cuLaunchKernelEx, 11060, (const lc_launch_config *, void *, void **, void **)) \
	X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags, 11040, (void **, void *, unsigned long long)) \
	X(cuGraphGetNodes, cuGraphGetNodes, 10000, (void *, void **, size_t *)) \
	X(cuGraphUpload, cuGraphUpload, 11010, (void *, void *)) \
	X(cuGraphLaunch, cuGraphLaunch, 10000, (void *, void *)) \
	X(cuGraphExecDestroy, cuGraphExecDestroy, 10000, (void *)) \
	X(cuGraphDestroy, cuGraphDestroy, 10000, (void *)) \
	X(cuMemGetAllocationGranularity, cuMemGetAllocationGranularity, 10020, (size_t *, const lc_memory_prop *, int)) \
	X(cuMemAddressReserve, cuMemAddressReserve, 10020, (uint64_t *, size_t, size_t, uint64_t, unsigned long long)) \
	X(cuMemAddressFree, cuMemAddressFree, 10020, (uint64_t, size_t)) \
	X(cuMemCreate, cuMemCreate, 10020, (unsigned long long *, size_t, const lc_memory_prop *, unsigned long long)) \
	X(cuMemRelease, cuMemRelease, 10020, (unsigned long long)) \
	X(cuMemMap, cuMemMap, 10020, (uint64_t, size_t, size_t, unsigned long long, unsigned long long)) \
	X(cuMemUnmap, cuMemUnmap, 10020, (uint64_t, size_t)) \
	X(cuMemSetAccess, cuMemSetAccess, 10020, (uint64_t, size_t, const lc_access *, size_t)) \
	X(cuTensorMapEncodeTiled, cuTensorMapEncodeTiled, 12000, (lc_tensor_map *, int, uint32_t, void *, const uint64_t *, const uint64_t *, const uint32_t *, const uint32_t *, int, int, int, int))

#define LC_DECLARE(name, symbol, version, params) extern int(*lc_##name) params;
LC_CALLS(LC_DECLARE)
#undef LC_DECLARE

enum {
	lc_no_library = -1,    // there is no libcuda.so.1
	lc_not_supported = 801 // what is returned for a call that the library does not have
};

// Loads the library and initialises the driver: lc_no_library, or what cuInit
// returned. Later calls return the same.
int lc_open(void);

// Of this process's library, why it could not be loaded.
const char *lc_open_error(void);

// Each of these makes ctx current to its thread and then makes the call of the
// same name: a goroutine may be on another thread at each call.
int lc_pci_bus_id(char *id, int len, int device);
int lc_stream_wait_event(void *ctx, void *stream, void *event);
int lc_begin_capture(void *ctx, void *stream);
int lc_end_capture(void *ctx, void *stream, void **graph);
int lc_event_record(void *ctx, void *event, void *stream);
int lc_event_query(void *ctx, void *event);
int lc_event_elapsed(void *ctx, float *ms, void *start, void *end);
int lc_host_alloc(void *ctx, void **p, size_t bytes);
int lc_host_free(void *ctx, void *p);
int lc_pool_create(void *ctx, void **pool, int device);
int lc_pool_destroy(void *ctx, void *pool);
int lc_pool_trim(void *ctx, void *pool, size_t keep);
int lc_pool_alloc(void *ctx, uint64_t *p, size_t bytes, void *pool, void *stream);
int lc_pool_free(void *ctx, uint64_t p, void *stream);
int lc_copy_htod(void *ctx, uint64_t dst, const void *src, size_t bytes, void *stream);
int lc_copy_dtoh(void *ctx, void *dst, uint64_t src, size_t bytes, void *stream);
int lc_copy_dtod(void *ctx, uint64_t dst, uint64_t src, size_t bytes, void *stream);
int lc_memset(void *ctx, uint64_t dst, unsigned char value, size_t bytes, void *stream);
int lc_set_dynamic_shared(void *ctx, void *fn, int bytes);
int lc_param_bytes(void *ctx, void *fn, size_t *bytes);
int lc_graph_instantiate(void *ctx, void *graph, void **exec);
int lc_graph_nodes(void *ctx, void *graph, size_t *n);
int lc_graph_upload(void *ctx, void *exec, void *stream);
int lc_graph_launch(void *ctx, void *exec, void *stream);
int lc_graph_destroy(void *ctx, void *graph);
int lc_graph_exec_destroy(void *ctx, void *exec);
int lc_granularity(void *ctx, int device, size_t *bytes);
int lc_reserve(void *ctx, uint64_t *p, size_t bytes, size_t align);
int lc_reserve_free(void *ctx, uint64_t p, size_t bytes);
int lc_memory_create(void *ctx, int device, unsigned long long *handle, size_t bytes);
int lc_memory_release(void *ctx, unsigned long long handle);
int lc_map(void *ctx, uint64_t p, size_t bytes, unsigned long long handle);
int lc_unmap(void *ctx, uint64_t p, size_t bytes);
int lc_allow(void *ctx, int device, uint64_t p, size_t bytes);

// Waits until all that was put in the stream before is done. It asks for some
// microseconds, then sleeps until event, made for blocking, is reached.
int lc_stream_sync(void *ctx, void *stream, void *event);
int lc_event_sync(void *ctx, void *event);

// A kernel with one parameter, at params.
int lc_launch(void *ctx, void *fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
	unsigned shared, void *stream, void *params);
int lc_launch_ex(void *ctx, void *fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
	unsigned shared, void *stream, void *params, unsigned cx, unsigned cy, unsigned cz, int programmatic);

int lc_tensor_map_tiled(void *out, int type, uint32_t rank, uint64_t address, const uint64_t *dims, const uint64_t *strides,
	const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int promotion, int fill);

#endif
