// Found before the cuda.h of a toolkit. CUDA 13 gave five functions that
// gorgonia.org/cu calls other parameters; here they have the former ones again.
// With the header of CUDA 12, or with ours, this one changes nothing.
#pragma once
#include_next <cuda.h>

#if CUDA_VERSION >= 13000

#undef cuCtxCreate
#undef cuMemAdvise
#undef cuMemPrefetchAsync
#undef cuGraphAddDependencies
#undef cuGraphGetEdges

static inline CUmemLocation longctx_location(CUdevice d) {
	CUmemLocation l;
	l.type = d == CU_DEVICE_CPU ? CU_MEM_LOCATION_TYPE_HOST : CU_MEM_LOCATION_TYPE_DEVICE;
	l.id = d == CU_DEVICE_CPU ? 0 : d;
	return l;
}

static inline CUresult cuCtxCreate(CUcontext *c, unsigned int flags, CUdevice d) {
	return cuCtxCreate_v4(c, 0, flags, d);
}

static inline CUresult cuMemAdvise(CUdeviceptr p, size_t n, CUmem_advise advice, CUdevice d) {
	return cuMemAdvise_v2(p, n, advice, longctx_location(d));
}

static inline CUresult cuMemPrefetchAsync(CUdeviceptr p, size_t n, CUdevice d, CUstream s) {
	return cuMemPrefetchAsync_v2(p, n, longctx_location(d), 0, s);
}

static inline CUresult cuGraphAddDependencies(CUgraph g, const CUgraphNode *from, const CUgraphNode *to, size_t n) {
	return cuGraphAddDependencies_v2(g, from, to, 0, n);
}

static inline CUresult cuGraphGetEdges(CUgraph g, CUgraphNode *from, CUgraphNode *to, size_t *n) {
	return cuGraphGetEdges_v2(g, from, to, 0, n);
}

#endif
