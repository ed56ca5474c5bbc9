// Start, devices, contexts, and what tests ask of the simulated driver.
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "driver.h"

namespace driver {

State state;
thread_local void *current;
char primary;

static long from_env(const char *name, long otherwise) {
	const char *s = getenv(name);
	return s && *s ? atol(s) : otherwise;
}

int say(int code, const char *format, ...) {
	va_list args;
	va_start(args, format);
	fputs("simulated driver: ", stderr);
	vfprintf(stderr, format, args);
	fprintf(stderr, " (%d)\n", code);
	va_end(args);
	return code;
}

double now() {
	timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

int lose(int code, const std::string &why) {
	if (!state.sticky) {
		state.sticky = code;
		state.note = why;
		say(code, "device lost: %s", why.c_str());
	}
	return state.sticky;
}

Call::Call(Needs needs, bool may_fail) : lock(state.mutex) {
	if (needs >= init && !state.initialized) {
		code = not_initialized;
		return;
	}
	if (needs == context && current != &primary) {
		code = say(invalid_context, "no context is current to this thread");
		return;
	}
	if (needs == context && !state.retained) {
		code = say(709, "the context was given back");
		return;
	}
	if (needs == context && state.sticky) {
		code = state.sticky;
		return;
	}
	if (may_fail && ++state.calls == state.fail_at) {
		code = state.fail_code;
		if (code >= 700 && code < 720)
			state.sticky = code;
	}
}

} // namespace driver

using namespace driver;

CUDA_API int cuInit(unsigned flags) {
	std::lock_guard<std::recursive_mutex> lock(state.mutex);
	if (flags)
		return invalid_value;
	if (!state.initialized) {
		state.devices = (int)from_env("LONGCTX_SIM_DEVICES", 1);
		state.memory = (size_t)from_env("LONGCTX_SIM_MEMORY", 8l << 30);
		state.initialized = true;
	}
	return success;
}

CUDA_API int cuDriverGetVersion(int *v) {
	*v = 13000;
	return success;
}

CUDA_API int cuDeviceGetCount(int *n) {
	ENTER(Call::init)
	*n = state.devices;
	return success;
}

static int check_device(int d) { return d >= 0 && d < state.devices ? success : invalid_device; }

CUDA_API int cuDeviceGet(int *d, int ordinal) {
	ENTER(Call::init)
	*d = ordinal;
	return check_device(ordinal);
}

CUDA_API int cuDeviceGetName(char *name, int len, int d) {
	ENTER(Call::init)
	if (int e = check_device(d))
		return e;
	snprintf(name, (size_t)len, "longctx simulator");
	return success;
}

CUDA_API int cuDeviceGetPCIBusId(char *id, int len, int d) {
	ENTER(Call::init)
	if (int e = check_device(d))
		return e;
	snprintf(id, (size_t)len, "0000:00:%02d.0", d);
	return success;
}

CUDA_API int cuDeviceTotalMem_v2(size_t *bytes, int d) {
	ENTER(Call::init)
	*bytes = state.memory;
	return check_device(d);
}

CUDA_API int cuDeviceGetAttribute(int *v, int attribute, int d) {
	ENTER(Call::init)
	if (int e = check_device(d))
		return e;
	switch (attribute) {
	case 1: *v = 1024; break;           // threads of a block
	case 8: *v = 48 << 10; break;       // shared memory of a block
	case 10: *v = 32; break;            // warp
	case 16: *v = (int)from_env("LONGCTX_SIM_SMS", 4); break;
	case 38: *v = 1 << 20; break;       // L2
	case 75: *v = 9; break;             // compute capability
	case 76: *v = 0; break;
	case 81: *v = 228 << 10; break;     // shared memory of a multiprocessor
	case 97: *v = 227 << 10; break;     // of a block that asked for it
	default: return say(invalid_value, "device attribute %d", attribute);
	}
	return success;
}

CUDA_API int cuDevicePrimaryCtxRetain(void **ctx, int d) {
	ENTER(Call::init)
	if (d != 0)
		return say(check_device(d) ? invalid_device : not_supported, "a context of device %d", d);
	state.retained++;
	*ctx = &primary;
	return success;
}

CUDA_API int cuDevicePrimaryCtxRelease_v2(int d) {
	ENTER(Call::init, false)
	if (d != 0 || !state.retained)
		return say(invalid_context, "a context is given back that was not retained");
	if (--state.retained == 0) {
		drain_all();
		if (state.sticky) // it takes with it what can no longer be given back
			forget_all();
		state.sticky = 0;
		state.note.clear();
	}
	return success;
}

CUDA_API int cuCtxSetCurrent(void *ctx) {
	ENTER(Call::init, false)
	if (ctx && (ctx != &primary || !state.retained))
		return say(invalid_context, "%p is no context", ctx);
	current = ctx;
	return success;
}

CUDA_API int cuCtxGetCurrent(void **ctx) {
	ENTER(Call::init, false)
	*ctx = current;
	return success;
}

CUDA_API int cuCtxSynchronize(void) {
	ENTER(Call::context)
	for (Stream *s : state.streams)
		if (int e = waits(s))
			return e;
	return drain_all();
}

static const struct {
	int code;
	const char *name, *text;
} codes[] = {
	{success, "CUDA_SUCCESS", "no error"},
	{invalid_value, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
	{out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
	{not_initialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
	{invalid_device, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
	{invalid_image, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
	{invalid_context, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
	{invalid_handle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
	{illegal_state, "CUDA_ERROR_ILLEGAL_STATE", "illegal state"},
	{not_found, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
	{not_ready, "CUDA_ERROR_NOT_READY", "device not ready"},
	{illegal_address, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
	{launch_timeout, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
	{709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
	{assertion, "CUDA_ERROR_ASSERT", "device-side assert triggered"},
	{launch_failed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
	{not_supported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
	{capture_unsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
	{capture_invalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
	{capture_unmatched, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
	{capture_unjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
};

CUDA_API int cuGetErrorName(int code, const char **name) {
	for (auto &c : codes)
		if (c.code == code) {
			*name = c.name;
			return success;
		}
	*name = nullptr;
	return invalid_value;
}

CUDA_API int cuGetErrorString(int code, const char **text) {
	for (auto &c : codes)
		if (c.code == code) {
			*text = c.text;
			return success;
		}
	*text = nullptr;
	return invalid_value;
}

// What tests ask for.

// The k-th call that may fail from now on returns code and does nothing; k 0:
// none does. Calls that give something back do not fail.
CUDA_API void sim_driver_fail(long k, int code) {
	std::lock_guard<std::recursive_mutex> lock(state.mutex);
	state.calls = 0;
	state.fail_at = k;
	state.fail_code = code;
}

// Calls that may fail since sim_driver_fail.
CUDA_API long sim_driver_calls(void) { return state.calls; }

// What was made and not given back, in words.
CUDA_API const char *sim_driver_live(void) {
	std::lock_guard<std::recursive_mutex> lock(state.mutex);
	static char text[512];
	auto &s = state;
	size_t physical = 0;
	for (auto p : s.physicals)
		physical += p->maps > 0 || !p->released;
	snprintf(text, sizeof text,
		"%d contexts, %zu streams, %zu events, %zu modules, %zu pools, %zu graphs, %zu graph execs, %zu allocations, %zu pinned, %zu reservations, %zu physical memories, %zu bytes",
		s.retained, s.streams.size(), s.events.size(), s.modules.size(), s.pools.size(), s.graphs.size(), s.execs.size(),
		s.allocations.size(), s.pinned.size(), s.reservations.size(), physical, s.used + s.host_used);
	return text;
}

// The functions that are in no version but the one exported are found by name.
CUDA_API int cuGetProcAddress_v2(const char *, void **p, int, uint64_t, int *status) {
	*p = nullptr;
	if (status)
		*status = 1;
	return not_found;
}
