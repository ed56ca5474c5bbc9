// The simulated driver: a libcuda.so.1 whose device is the host simulator. Work
// put in a stream runs only when somebody waits for it, so that what a program
// forgot to wait for is not there.
#ifndef LONGCTX_SIM_DRIVER_H
#define LONGCTX_SIM_DRIVER_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "../sim.h"

#define CUDA_API extern "C" __attribute__((visibility("default")))

namespace driver {

enum Result {
	success = 0,
	invalid_value = 1,
	out_of_memory = 2,
	not_initialized = 3,
	invalid_image = 200,
	invalid_context = 201,
	invalid_device = 101,
	invalid_handle = 400,
	illegal_state = 401,
	not_found = 500,
	not_ready = 600,
	illegal_address = 700,
	launch_timeout = 702,
	assertion = 710,
	launch_failed = 719,
	not_supported = 801,
	capture_unsupported = 900,
	capture_invalidated = 901,
	capture_unmatched = 903,
	capture_unjoined = 904,
};

struct Stream;

// Op is work in a stream. run returns a Result.
struct Op {
	std::function<int()> run;
};

struct Graph {
	std::vector<Op> ops;
};

struct Event {
	bool timing = false;
	Stream *stream = nullptr; // it was recorded in; 0: not recorded
	uint64_t at = 0;          // ops of the stream that come before it
	bool reached = true;
	double time = 0;
	uint64_t version = 0;    // of its records
	Graph *capture = nullptr; // under way, in which it was recorded
};

struct Stream {
	std::deque<Op> queue;
	uint64_t put = 0, done = 0; // ops
	Graph *capture = nullptr;   // under way
	bool origin = false;        // capture began here
	bool broken = false;        // what is not allowed was done in the capture
	bool joined = true;         // the origin waits for all that was captured here
};

struct Pool {
	uint64_t threshold = 0;
};

struct Function {
	const sim_kernel *kernel = nullptr;
	long dynamic_limit = 0;
};

struct Module {
	std::map<std::string, Function *> functions;
};

struct Physical { // made by cuMemCreate
	int fd = -1;
	size_t bytes = 0;
	int maps = 0;
	bool released = false;
};

struct Reservation {
	size_t bytes = 0;
	struct Map {
		size_t bytes = 0;
		Physical *memory = nullptr;
		bool allowed = false;
	};
	std::map<uint64_t, Map> maps;
};

enum Kind { plain, pooled };

struct Allocation {
	size_t bytes = 0, mapped = 0; // as asked for; with its guards
	Kind kind = plain;
	Pool *pool = nullptr;
	bool live = true;  // pooled: between the ops that allocate and free it
	bool freeing = false;
};

struct State {
	std::recursive_mutex mutex;
	bool initialized = false;
	int devices = 1;
	int retained = 0; // of the primary context of device 0
	size_t memory = 0, used = 0, host_used = 0;
	int sticky = 0; // what lost the device
	std::string note; // about it

	std::set<Stream *> streams;
	std::set<Event *> events;
	std::set<Module *> modules;
	std::set<Function *> functions;
	std::set<Pool *> pools;
	std::set<Graph *> graphs, execs;
	std::map<uint64_t, Allocation> allocations;
	std::map<uint64_t, size_t> pinned;
	std::map<uint64_t, Reservation> reservations;
	std::set<Physical *> physicals;

	long calls = 0;            // that may fail
	long fail_at = 0;          // the number of the one that does; 0: none
	int fail_code = 0;
};

extern State state;
extern thread_local void *current; // context of this thread
extern char primary;               // its address is the primary context

// Call holds the lock for a call of the API. code is not 0 when the call must
// fail at once: no context, a lost device, a failure that a test asked for.
struct Call {
	std::unique_lock<std::recursive_mutex> lock;
	int code = 0;
	enum Needs { nothing, init, context };
	explicit Call(Needs needs, bool may_fail = true);
};
#define ENTER(...) \
	driver::Call call_{__VA_ARGS__}; \
	if (call_.code) return call_.code;

// say explains a refusal on stderr: a CUresult says little.
int say(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

double now(); // ms

// The default stream, of the calls that take none.
Stream *stream_of(void *h); // 0 and says so when it is none
Stream *default_stream();

// put adds work to a stream, or to the graph that it is captured into.
int put(Stream *s, Op op);

// run_to runs a stream's work until so many ops of it are done.
int run_to(Stream *s, uint64_t count);
int drain(Stream *s);
int drain_all();

// waits is called by what waits for a stream, which a capture does not allow.
int waits(Stream *s);

int lose(int code, const std::string &why);

// device_range says whether n bytes at p are memory that may be used now.
bool device_range(uint64_t p, size_t n);
bool any_device(uint64_t p); // p is in an allocation or reservation
bool pinned_range(const void *p, size_t n);

int free_allocation(uint64_t p);

// forget_all gives back all that was taken, as the end of a context does.
void forget_all();

} // namespace driver

#endif
