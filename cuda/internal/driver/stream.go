//go:build cuda && cgo

package driver

/*
#include "calls.h"

#cgo nocallback lc_event_record
#cgo nocallback lc_stream_wait_event
#cgo nocallback lc_stream_sync
*/
import "C"

import "time"

// Stream is a queue of the device. What is put in one runs in order.
type Stream struct {
	dev  *Device
	h    handle
	done handle // recorded by Sync, which sleeps until it is reached
}

const (
	eventBlocking = 1 // its waiters sleep
	eventNoTiming = 2
)

// NewStream makes a stream that does not wait for the default one.
func (d *Device) NewStream() (*Stream, error) { return d.NewStreamWithPriority(0) }

// NewStreamWithPriority makes one whose kernels go before those of streams with
// a larger number; what is beyond the device's range counts as its end.
func (d *Device) NewStreamWithPriority(priority int) (*Stream, error) {
	s := &Stream{dev: d}
	err := d.try("cuStreamCreateWithPriority", func() (c C.int) {
		s.h, c = cuMakeStream(d.ctx, priority)
		return c
	})
	if err != nil {
		return nil, err
	}
	err = d.try("cuEventCreate", func() (c C.int) {
		s.done, c = cuMakeEvent(d.ctx, eventBlocking|eventNoTiming)
		return c
	})
	if err != nil {
		cuDestroyStream(d.ctx, s.h)
		return nil, err
	}
	return s, nil
}

// Device is the stream's.
func (s *Stream) Device() *Device { return s.dev }

// Close gives the stream back. What is in it runs to its end.
func (s *Stream) Close() error {
	if s.h == nil {
		return nil
	}
	h, done := s.h, s.done
	s.h, s.done = nil, nil
	event := s.dev.try("cuEventDestroy", func() C.int { return cuDestroyEvent(s.dev.ctx, done) })
	if err := s.dev.try("cuStreamDestroy", func() C.int { return cuDestroyStream(s.dev.ctx, h) }); err != nil {
		return err
	}
	return event
}

// Sync waits until all that was put in the stream is done, and reports what went
// wrong in it: for some microseconds by asking, then asleep.
func (s *Stream) Sync() error {
	if err := s.dev.gone("cuStreamSynchronize"); err != nil {
		return err
	}
	if c := C.lc_stream_sync(s.dev.ctx, s.h, s.done); c != 0 {
		return s.dev.failed("cuStreamSynchronize", Code(c), "", "")
	}
	return nil
}

// Wait has what is put in the stream from now on wait until e is reached.
func (s *Stream) Wait(e *Event) error {
	if err := s.dev.gone("cuStreamWaitEvent"); err != nil {
		return err
	}
	if c := C.lc_stream_wait_event(s.dev.ctx, s.h, e.h); c != 0 {
		return s.dev.failed("cuStreamWaitEvent", Code(c), "", "")
	}
	return nil
}

// Event is a place in a stream.
type Event struct {
	dev *Device
	h   handle
}

// NewEvent makes an event; one with timing can be asked for the time since
// another.
func (d *Device) NewEvent(timing bool) (*Event, error) {
	flags := eventBlocking
	if !timing {
		flags |= eventNoTiming
	}
	e := &Event{dev: d}
	err := d.try("cuEventCreate", func() (c C.int) {
		e.h, c = cuMakeEvent(d.ctx, flags)
		return c
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Close gives the event back.
func (e *Event) Close() error {
	if e.h == nil {
		return nil
	}
	h := e.h
	e.h = nil
	return e.dev.try("cuEventDestroy", func() C.int { return cuDestroyEvent(e.dev.ctx, h) })
}

// Record places the event after all that was put in s.
func (e *Event) Record(s *Stream) error {
	if err := e.dev.gone("cuEventRecord"); err != nil {
		return err
	}
	if c := C.lc_event_record(e.dev.ctx, e.h, s.h); c != 0 {
		return e.dev.failed("cuEventRecord", Code(c), "", "")
	}
	return nil
}

// Done reports whether the event is reached. One that was not recorded is.
func (e *Event) Done() (bool, error) {
	if err := e.dev.gone("cuEventQuery"); err != nil {
		return false, err
	}
	switch c := Code(C.lc_event_query(e.dev.ctx, e.h)); c {
	case 0:
		return true, nil
	case NotReady:
		return false, nil
	default:
		return false, e.dev.failed("cuEventQuery", c, "", "")
	}
}

// Sync waits until the event is reached.
func (e *Event) Sync() error {
	return e.dev.try("cuEventSynchronize", func() C.int { return C.lc_event_sync(e.dev.ctx, e.h) })
}

// Since is the time between two events with timing that are reached.
func (e *Event) Since(start *Event) (time.Duration, error) {
	var ms C.float
	err := e.dev.try("cuEventElapsedTime", func() C.int { return C.lc_event_elapsed(e.dev.ctx, &ms, start.h, e.h) })
	return time.Duration(float64(ms) * float64(time.Millisecond)), err
}
