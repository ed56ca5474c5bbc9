//go:build cuda && cgo

#include "calls.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#define LC_DEFINE(name, symbol, version, params) int(*lc_##name) params;
LC_CALLS(LC_DEFINE)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int opened;
static char why[256];

typedef int (*get_proc)(const char *, void **, int, uint64_t, int *);

// The library's table first: it knows the variant of a call for a version. By
// name where it is too old to have the table.
static void *find(void *lib, get_proc get, const char *name, const char *symbol, int version) {
	void *p = 0;
	int status = 0;
	if (get && get(name, &p, version, 0, &status) == 0 && p) return p;
	return dlsym(lib, symbol);
}

static void load(void) {
	void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
	if (!lib) {
		const char *e = dlerror();
		strncpy(why, e ? e : "unknown error of the loader", sizeof why - 1);
		opened = lc_no_library;
		return;
	}
	get_proc get = (get_proc)dlsym(lib, "cuGetProcAddress_v2");
#define LC_FIND(name, symbol, version, params) lc_##name = find(lib, get, #name, #symbol, version);
	LC_CALLS(LC_FIND)
	opened = lc_cuInit ? lc_cuInit(0) : lc_not_supported;
}

int lc_open(void) {
	pthread_once(&once, load);
	return opened;
}

const char *lc_open_error(void) { return why; }

// CALL makes ctx current and makes a call; it is an error to lack either.
static int enter(void *ctx) { return lc_cuCtxSetCurrent ? lc_cuCtxSetCurrent(ctx) : lc_not_supported; }
#define CALL(name, ...) \
	do { \
		int e = enter(ctx); \
		if (e) return e; \
		return lc_##name ? lc_##name(__VA_ARGS__) : lc_not_supported; \
	} while (0)

int lc_pci_bus_id(char *id, int len, int device) {
	return lc_cuDeviceGetPCIBusId ? lc_cuDeviceGetPCIBusId(id, len, device) : lc_not_supported;
}

int lc_stream_wait_event(void *ctx, void *stream, void *event) { CALL(cuStreamWaitEvent, stream, event, 0); }

// Mode 2 is relaxed: the others want a capture to end on the thread it began on,
// and a goroutine may be on another by then.
int lc_begin_capture(void *ctx, void *stream) { CALL(cuStreamBeginCapture, stream, 2); }
int lc_end_capture(void *ctx, void *stream, void **graph) { CALL(cuStreamEndCapture, stream, graph); }

int lc_event_record(void *ctx, void *event, void *stream) { CALL(cuEventRecord, event, stream); }
int lc_event_query(void *ctx, void *event) { CALL(cuEventQuery, event); }
int lc_event_elapsed(void *ctx, float *ms, void *start, void *end) { CALL(cuEventElapsedTime, ms, start, end); }

int lc_host_alloc(void *ctx, void **p, size_t bytes) { CALL(cuMemHostAlloc, p, bytes, 1); } // 1: portable
int lc_host_free(void *ctx, void *p) { CALL(cuMemFreeHost, p); }

enum { pinned = 1, on_device = 1, keep_attribute = 4, read_write = 3 };

int lc_pool_create(void *ctx, void **pool, int device) {
	lc_pool_props props;
	memset(&props, 0, sizeof props);
	props.type = pinned;
	props.location.type = on_device;
	props.location.id = device;
	int e = enter(ctx);
	if (e) return e;
	if (!lc_cuMemPoolCreate || !lc_cuMemPoolSetAttribute || !lc_cuMemPoolDestroy) return lc_not_supported;
	e = lc_cuMemPoolCreate(pool, &props);
	if (e) return e;
	uint64_t keep = UINT64_MAX; // what is freed stays in the pool: giving it back would cost a synchronisation
	e = lc_cuMemPoolSetAttribute(*pool, keep_attribute, &keep);
	if (e) {
		lc_cuMemPoolDestroy(*pool);
		*pool = 0;
	}
	return e;
}
int lc_pool_destroy(void *ctx, void *pool) { CALL(cuMemPoolDestroy, pool); }
int lc_pool_trim(void *ctx, void *pool, size_t keep) { CALL(cuMemPoolTrimTo, pool, keep); }
int lc_pool_alloc(void *ctx, uint64_t *p, size_t bytes, void *pool, void *stream) {
	CALL(cuMemAllocFromPoolAsync, p, bytes, pool, stream);
}
int lc_pool_free(void *ctx, uint64_t p, void *stream) { CALL(cuMemFreeAsync, p, stream); }

int lc_copy_htod(void *ctx, uint64_t dst, const void *src, size_t bytes, void *stream) {
	CALL(cuMemcpyHtoDAsync, dst, src, bytes, stream);
}
int lc_copy_dtoh(void *ctx, void *dst, uint64_t src, size_t bytes, void *stream) {
	CALL(cuMemcpyDtoHAsync, dst, src, bytes, stream);
}
int lc_copy_dtod(void *ctx, uint64_t dst, uint64_t src, size_t bytes, void *stream) {
	CALL(cuMemcpyDtoDAsync, dst, src, bytes, stream);
}
int lc_memset(void *ctx, uint64_t dst, unsigned char value, size_t bytes, void *stream) {
	CALL(cuMemsetD8Async, dst, value, bytes, stream);
}

int lc_set_dynamic_shared(void *ctx, void *fn, int bytes) { CALL(cuFuncSetAttribute, fn, 8, bytes); }

int lc_param_bytes(void *ctx, void *fn, size_t *bytes) {
	size_t offset = 0;
	CALL(cuFuncGetParamInfo, fn, 0, &offset, bytes);
}

int lc_graph_instantiate(void *ctx, void *graph, void **exec) { CALL(cuGraphInstantiateWithFlags, exec, graph, 0); }
int lc_graph_nodes(void *ctx, void *graph, size_t *n) { CALL(cuGraphGetNodes, graph, 0, n); }
int lc_graph_upload(void *ctx, void *exec, void *stream) { CALL(cuGraphUpload, exec, stream); }
int lc_graph_launch(void *ctx, void *exec, void *stream) { CALL(cuGraphLaunch, exec, stream); }
int lc_graph_destroy(void *ctx, void *graph) { CALL(cuGraphDestroy, graph); }
int lc_graph_exec_destroy(void *ctx, void *exec) { CALL(cuGraphExecDestroy, exec); }

static lc_memory_prop memory_of(int device) {
	lc_memory_prop prop;
	memset(&prop, 0, sizeof prop);
	prop.type = pinned;
	prop.location.type = on_device;
	prop.location.id = device;
	return prop;
}

int lc_granularity(void *ctx, int device, size_t *bytes) {
	lc_memory_prop prop = memory_of(device);
	CALL(cuMemGetAllocationGranularity, bytes, &prop, 1); // 1: recommended
}
int lc_reserve(void *ctx, uint64_t *p, size_t bytes, size_t align) { CALL(cuMemAddressReserve, p, bytes, align, 0, 0); }
int lc_reserve_free(void *ctx, uint64_t p, size_t bytes) { CALL(cuMemAddressFree, p, bytes); }
int lc_memory_create(void *ctx, int device, unsigned long long *handle, size_t bytes) {
	lc_memory_prop prop = memory_of(device);
	CALL(cuMemCreate, handle, bytes, &prop, 0);
}
int lc_memory_release(void *ctx, unsigned long long handle) { CALL(cuMemRelease, handle); }
int lc_map(void *ctx, uint64_t p, size_t bytes, unsigned long long handle) { CALL(cuMemMap, p, bytes, 0, handle, 0); }
int lc_unmap(void *ctx, uint64_t p, size_t bytes) { CALL(cuMemUnmap, p, bytes); }
int lc_allow(void *ctx, int device, uint64_t p, size_t bytes) {
	lc_access access;
	memset(&access, 0, sizeof access);
	access.location.type = on_device;
	access.location.id = device;
	access.flags = read_write;
	CALL(cuMemSetAccess, p, bytes, &access, 1);
}

static const int not_ready = 600;
static const long patience = 20000; // nanoseconds of asking: about what Go takes to notice a call that blocks

static long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

int lc_stream_sync(void *ctx, void *stream, void *event) {
	int e = enter(ctx);
	if (e) return e;
	if (!lc_cuStreamQuery || !lc_cuEventRecord || !lc_cuEventSynchronize) return lc_not_supported;
	long start = now();
	do {
		e = lc_cuStreamQuery(stream);
		if (e != not_ready) return e;
	} while (now() - start < patience);
	e = lc_cuEventRecord(event, stream);
	return e ? e : lc_cuEventSynchronize(event);
}

int lc_event_sync(void *ctx, void *event) {
	int e = enter(ctx);
	if (e) return e;
	if (!lc_cuEventQuery || !lc_cuEventSynchronize) return lc_not_supported;
	long start = now();
	do {
		e = lc_cuEventQuery(event);
		if (e != not_ready) return e;
	} while (now() - start < patience);
	return lc_cuEventSynchronize(event);
}

int lc_launch(void *ctx, void *fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
	unsigned shared, void *stream, void *params) {
	void *list[1] = {params};
	CALL(cuLaunchKernel, fn, gx, gy, gz, bx, by, bz, shared, stream, list, 0);
}

int lc_launch_ex(void *ctx, void *fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
	unsigned shared, void *stream, void *params, unsigned cx, unsigned cy, unsigned cz, int programmatic) {
	enum { cluster_dimension = 4, programmatic_serialization = 6 };
	void *list[1] = {params};
	lc_launch_attribute a[2];
	memset(a, 0, sizeof a);
	lc_launch_config c = {gx, gy, gz, bx, by, bz, shared, stream, a, 0};
	if (cx * cy * cz > 1) {
		a[c.attribute_count].id = cluster_dimension;
		a[c.attribute_count].value.cluster.x = cx;
		a[c.attribute_count].value.cluster.y = cy;
		a[c.attribute_count++].value.cluster.z = cz;
	}
	if (programmatic) {
		a[c.attribute_count].id = programmatic_serialization;
		a[c.attribute_count++].value.flag = 1;
	}
	CALL(cuLaunchKernelEx, &c, fn, list, 0);
}

int lc_tensor_map_tiled(void *out, int type, uint32_t rank, uint64_t address, const uint64_t *dims, const uint64_t *strides,
	const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int promotion, int fill) {
	lc_tensor_map map; // aligned, as out need not be
	if (!lc_cuTensorMapEncodeTiled) return lc_not_supported;
	int e = lc_cuTensorMapEncodeTiled(&map, type, rank, (void *)(uintptr_t)address, dims, strides, box, steps, interleave, swizzle, promotion, fill);
	if (!e) memcpy(out, &map, sizeof map);
	return e;
}
