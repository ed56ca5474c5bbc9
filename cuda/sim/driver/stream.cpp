// Streams, events, copies and graphs of the simulated driver.
#include <cstring>

#include "driver.h"

namespace driver {

Stream *default_stream() {
	static Stream s;
	return &s;
}

Stream *stream_of(void *h) {
	if (!h || h == (void *)1)
		return default_stream();
	if (state.streams.count((Stream *)h))
		return (Stream *)h;
	say(invalid_handle, "%p is no stream, or no more", h);
	return nullptr;
}

int put(Stream *s, Op op) {
	if (s->capture) {
		if (s->broken)
			return capture_invalidated;
		s->capture->ops.push_back(std::move(op));
		return success;
	}
	s->queue.push_back(std::move(op));
	s->put++;
	return success;
}

int run_to(Stream *s, uint64_t count) {
	while (s->done < count && !s->queue.empty()) {
		if (state.sticky)
			return state.sticky;
		Op op = std::move(s->queue.front());
		s->queue.pop_front();
		s->done++;
		if (int e = op.run())
			return lose(e, state.note.empty() ? "work in a stream" : state.note);
	}
	return state.sticky;
}

int drain(Stream *s) { return run_to(s, s->put); }

int drain_all() {
	std::vector<Stream *> all(state.streams.begin(), state.streams.end());
	for (Stream *s : all)
		if (int e = drain(s))
			return e;
	return drain(default_stream());
}

int waits(Stream *s) {
	if (!s->capture)
		return success;
	s->broken = true;
	return say(capture_unsupported, "a capture is under way in a stream that is waited for");
}

} // namespace driver

using namespace driver;

CUDA_API int cuStreamCreateWithPriority(void **out, unsigned, int) {
	ENTER(Call::context)
	Stream *s = new Stream;
	state.streams.insert(s);
	*out = s;
	return success;
}

CUDA_API int cuStreamDestroy_v2(void *h) {
	ENTER(Call::context, false)
	Stream *s = stream_of(h);
	if (!s || s == default_stream())
		return invalid_handle;
	int e = drain(s);
	for (Event *v : state.events)
		if (v->stream == s)
			v->stream = nullptr;
	state.streams.erase(s);
	delete s;
	return e;
}

// One op a query: who asks often enough gets done, and who asks once does not.
CUDA_API int cuStreamQuery(void *h) {
	ENTER(Call::context)
	Stream *s = stream_of(h);
	if (!s)
		return invalid_handle;
	if (int e = waits(s))
		return e;
	if (s->queue.empty())
		return success;
	if (int e = run_to(s, s->done + 1))
		return e;
	return s->queue.empty() ? success : not_ready;
}

CUDA_API int cuStreamSynchronize(void *h) {
	ENTER(Call::context)
	Stream *s = stream_of(h);
	if (!s)
		return invalid_handle;
	int e = waits(s);
	return e ? e : drain(s);
}

CUDA_API int cuEventCreate(void **out, unsigned flags) {
	ENTER(Call::context)
	Event *v = new Event;
	v->timing = !(flags & 2);
	state.events.insert(v);
	*out = v;
	return success;
}

static Event *event_of(void *h) {
	if (state.events.count((Event *)h))
		return (Event *)h;
	say(invalid_handle, "%p is no event, or no more", h);
	return nullptr;
}

CUDA_API int cuEventDestroy_v2(void *h) {
	ENTER(Call::context, false)
	Event *v = event_of(h);
	if (!v)
		return invalid_handle;
	state.events.erase(v);
	delete v;
	return success;
}

CUDA_API int cuEventRecord(void *h, void *stream) {
	ENTER(Call::context)
	Event *v = event_of(h);
	Stream *s = stream_of(stream);
	if (!v || !s)
		return invalid_handle;
	if (s->capture) {
		if (s->broken)
			return capture_invalidated;
		v->capture = s->capture;
		v->stream = s;
		return success;
	}
	v->capture = nullptr;
	v->stream = s;
	v->reached = false;
	uint64_t version = ++v->version;
	v->at = s->put + 1;
	return put(s, {[v, version] {
		if (state.events.count(v) && v->version == version) {
			v->reached = true;
			v->time = now();
		}
		return 0;
	}});
}

// reach runs what an event waits for. One whose stream is gone is reached.
static int reach(Event *v) {
	if (v->reached || !v->stream)
		return state.sticky;
	return run_to(v->stream, v->at);
}

static int asks(Event *v) {
	if (!v->capture)
		return success;
	for (Stream *s : state.streams)
		if (s->capture == v->capture)
			s->broken = true;
	return say(capture_unsupported, "an event of a capture is asked for");
}

CUDA_API int cuEventQuery(void *h) {
	ENTER(Call::context)
	Event *v = event_of(h);
	if (!v)
		return invalid_handle;
	if (int e = asks(v))
		return e;
	if (!v->reached && v->stream)
		if (int e = run_to(v->stream, v->stream->done + 1))
			return e;
	return v->reached || !v->stream ? success : not_ready;
}

CUDA_API int cuEventSynchronize(void *h) {
	ENTER(Call::context)
	Event *v = event_of(h);
	if (!v)
		return invalid_handle;
	int e = asks(v);
	return e ? e : reach(v);
}

CUDA_API int cuEventElapsedTime(float *ms, void *start, void *end) {
	ENTER(Call::context)
	Event *a = event_of(start), *b = event_of(end);
	if (!a || !b || !a->timing || !b->timing || !a->version || !b->version)
		return say(invalid_handle, "time between events without timing, or not recorded");
	if (!a->reached || !b->reached)
		return not_ready;
	*ms = (float)(b->time - a->time);
	return success;
}

CUDA_API int cuStreamWaitEvent(void *stream, void *h, unsigned) {
	ENTER(Call::context)
	Event *v = event_of(h);
	Stream *s = stream_of(stream);
	if (!v || !s)
		return invalid_handle;
	if (v->capture) {
		if (s->capture && s->capture != v->capture)
			return say(capture_invalidated, "a capture waits for another");
		if (!s->capture) { // it joins
			s->capture = v->capture;
			s->joined = false;
		} else if (s->origin && v->stream != s) {
			v->stream->joined = true;
		}
		return success; // the graph runs in the order of its calls
	}
	if (s->capture) {
		s->broken = true;
		return say(capture_unsupported, "a capture waits for what is not in it");
	}
	if (v->reached || !v->stream)
		return success;
	Stream *from = v->stream;
	uint64_t at = v->at;
	return put(s, {[from, at] { return state.streams.count(from) || from == default_stream() ? run_to(from, at) : 0; }});
}

// Copies.

static bool host_to_device(uint64_t dst, const void *src, size_t n) {
	if (device_range(dst, n) && src && !any_device((uint64_t)src))
		return true;
	say(invalid_value, "copy of %zu bytes from the host's %p to %#lx: not memory of the device, or not the host's", n, src, (long)dst);
	return false;
}

CUDA_API int cuMemcpyHtoD_v2(uint64_t dst, const void *src, size_t n) {
	ENTER(Call::context)
	if (!host_to_device(dst, src, n))
		return invalid_value;
	if (int e = drain(default_stream()))
		return e;
	memcpy((void *)dst, src, n);
	return success;
}

CUDA_API int cuMemcpyDtoH_v2(void *dst, uint64_t src, size_t n) {
	ENTER(Call::context)
	if (!host_to_device(src, dst, n))
		return invalid_value;
	if (int e = drain(default_stream()))
		return e;
	memcpy(dst, (void *)src, n);
	return success;
}

// A place in memory that the ops before it make live is known to be wrong only
// when the copy runs.
static int copy(void *dst, const void *src, size_t n, uint64_t device, uint64_t other) {
	if (!device_range(device, n) || (other && !device_range(other, n))) {
		state.note = "a copy of " + std::to_string(n) + " bytes from or to memory that is not there";
		return illegal_address;
	}
	memmove(dst, src, n);
	return success;
}

CUDA_API int cuMemcpyHtoDAsync_v2(uint64_t dst, const void *src, size_t n, void *stream) {
	ENTER(Call::context)
	Stream *s = stream_of(stream);
	if (!s)
		return invalid_handle;
	if (!src || any_device((uint64_t)src) || !any_device(dst))
		return say(invalid_value, "copy of %zu bytes from the host's %p to %#lx", n, src, (long)dst);
	// Pinned memory is read when the copy runs, as by the nodes of a graph.
	if (pinned_range(src, n) || s->capture)
		return put(s, {[=] { return copy((void *)dst, src, n, dst, 0); }});
	auto bytes = std::make_shared<std::vector<char>>((const char *)src, (const char *)src + n);
	return put(s, {[=] { return copy((void *)dst, bytes->data(), n, dst, 0); }});
}

CUDA_API int cuMemcpyDtoHAsync_v2(void *dst, uint64_t src, size_t n, void *stream) {
	ENTER(Call::context)
	Stream *s = stream_of(stream);
	if (!s)
		return invalid_handle;
	if (!dst || any_device((uint64_t)dst) || !any_device(src))
		return say(invalid_value, "copy of %zu bytes from %#lx to the host's %p", n, (long)src, dst);
	if (int e = put(s, {[=] { return copy(dst, (void *)src, n, src, 0); }}))
		return e;
	return pinned_range(dst, n) || s->capture ? success : drain(s);
}

CUDA_API int cuMemcpyDtoDAsync_v2(uint64_t dst, uint64_t src, size_t n, void *stream) {
	ENTER(Call::context)
	Stream *s = stream_of(stream);
	if (!s)
		return invalid_handle;
	if (!any_device(dst) || !any_device(src))
		return say(invalid_value, "copy of %zu bytes from %#lx to %#lx", n, (long)src, (long)dst);
	return put(s, {[=] { return copy((void *)dst, (void *)src, n, dst, src); }});
}

CUDA_API int cuMemsetD8Async(uint64_t dst, unsigned char value, size_t n, void *stream) {
	ENTER(Call::context)
	Stream *s = stream_of(stream);
	if (!s)
		return invalid_handle;
	if (!any_device(dst))
		return say(invalid_value, "%zu bytes at %#lx are set", n, (long)dst);
	return put(s, {[=] {
		if (!device_range(dst, n)) {
			state.note = std::to_string(n) + " bytes are set in memory that is not there";
			return (int)illegal_address;
		}
		memset((void *)dst, value, n);
		return (int)success;
	}});
}

// Graphs.

CUDA_API int cuStreamBeginCapture_v2(void *h, int) {
	ENTER(Call::context)
	Stream *s = stream_of(h);
	if (!s)
		return invalid_handle;
	if (s->capture || s == default_stream())
		return say(illegal_state, "a capture begins in the default stream, or in a capture");
	s->capture = new Graph;
	s->origin = true;
	s->broken = false;
	return success;
}

CUDA_API int cuStreamEndCapture(void *h, void **out) {
	ENTER(Call::context, false)
	Stream *s = stream_of(h);
	*out = nullptr;
	if (!s)
		return invalid_handle;
	if (!s->capture || !s->origin)
		return say(capture_unmatched, "a capture ends that did not begin in this stream");
	Graph *g = s->capture;
	bool broken = false, joined = true;
	for (Stream *x : state.streams)
		if (x->capture == g) {
			broken |= x->broken;
			joined &= x->joined;
			x->capture = nullptr;
			x->origin = x->broken = false;
			x->joined = true;
		}
	for (Event *v : state.events)
		if (v->capture == g) {
			v->capture = nullptr;
			v->stream = nullptr;
			v->reached = true;
		}
	// A call that fails here fails after the capture has ended.
	int e = broken ? capture_invalidated : joined ? success : capture_unjoined;
	if (!e && ++state.calls == state.fail_at)
		e = state.fail_code;
	if (e) {
		delete g;
		return e;
	}
	state.graphs.insert(g);
	*out = g;
	return success;
}

CUDA_API int cuGraphGetNodes(void *h, void **, size_t *n) {
	ENTER(Call::context)
	if (!state.graphs.count((Graph *)h))
		return say(invalid_value, "%p is no graph", h);
	*n = ((Graph *)h)->ops.size();
	return success;
}

CUDA_API int cuGraphInstantiateWithFlags(void **exec, void *h, unsigned long long) {
	ENTER(Call::context)
	if (!state.graphs.count((Graph *)h))
		return say(invalid_value, "%p is no graph", h);
	Graph *x = new Graph(*(Graph *)h);
	state.execs.insert(x);
	*exec = x;
	return success;
}

CUDA_API int cuGraphDestroy(void *h) {
	ENTER(Call::context, false)
	if (!state.graphs.erase((Graph *)h))
		return say(invalid_value, "%p is no graph", h);
	delete (Graph *)h;
	return success;
}

CUDA_API int cuGraphExecDestroy(void *h) {
	ENTER(Call::context, false)
	if (!state.execs.count((Graph *)h))
		return say(invalid_value, "%p is no graph", h);
	int e = drain_all();
	state.execs.erase((Graph *)h);
	delete (Graph *)h;
	return e;
}

CUDA_API int cuGraphUpload(void *h, void *stream) {
	ENTER(Call::context)
	if (!state.execs.count((Graph *)h) || !stream_of(stream))
		return say(invalid_value, "%p is no graph", h);
	return success;
}

CUDA_API int cuGraphLaunch(void *h, void *stream) {
	ENTER(Call::context)
	Graph *x = (Graph *)h;
	Stream *s = stream_of(stream);
	if (!s || !state.execs.count(x))
		return say(invalid_value, "%p is no graph, or %p no stream", h, stream);
	return put(s, {[x] {
		for (Op &op : x->ops)
			if (int e = op.run())
				return e;
		return 0;
	}});
}
