//go:build cuda && cgo

package simdriver

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>

static void *lib;
static void (*fail)(long, int);
static long (*calls)(void);
static const char *(*live)(void);

static int load(void) {
	if (!lib) lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
	if (!lib) return 0;
	fail = dlsym(lib, "sim_driver_fail");
	calls = dlsym(lib, "sim_driver_calls");
	live = dlsym(lib, "sim_driver_live");
	return fail && calls && live;
}
static void call_fail(long k, int code) { fail(k, code); }
static long call_calls(void) { return calls(); }
static const char *call_live(void) { return live(); }
*/
import "C"

import "sync"

// Missing is why the tests of a machine without a device cannot run, when Loaded
// is false.
const Missing = "the driver of this machine is not the simulated one: run make cuda-test"

// Loaded reports whether the driver of this process is the simulated one. The
// other functions may be called only if it is.
var Loaded = sync.OnceValue(func() bool { return C.load() != 0 })

// Fail has the k-th call from now on that may fail return a code; 0: none.
func Fail(k, code int) { C.call_fail(C.long(k), C.int(code)) }

// Calls is the number of calls that may fail since Fail.
func Calls() int { return int(C.call_calls()) }

// Live says what was taken from the driver and not given back.
func Live() string { return C.GoString(C.call_live()) }
