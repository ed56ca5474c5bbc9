// A libcuda to link with, for programs that may start where there is no driver.
// It loads libcuda.so.1 when cuInit is called. Without one, cuInit succeeds and
// there are no devices: gorgonia.org/cu ends the process when cuInit fails.
#include "stub.h"

#include <dlfcn.h>
#include <pthread.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *lib;
static int usable; // the driver's own cuInit succeeded

static void load(void) {
	lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
	if (!lib) return;
	for (int i = 0; longctx_stub_names[i]; i++) longctx_stub_calls[i] = dlsym(lib, longctx_stub_names[i]);
	CUresult (*init)(unsigned int) = dlsym(lib, "cuInit");
	usable = init && init(0) == CUDA_SUCCESS;
}

CUresult longctx_stub_absent(void) {
	return usable ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_NO_DEVICE;
}

CUresult cuInit(unsigned int flags) {
	pthread_once(&once, load);
	return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *n) {
	CUresult (*call)(int *) = lib ? dlsym(lib, "cuDeviceGetCount") : 0;
	*n = 0;
	return usable && call ? call(n) : CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
	CUresult (*call)(int *) = lib ? dlsym(lib, "cuDriverGetVersion") : 0;
	*version = 0;
	return call ? call(version) : CUDA_SUCCESS;
}
