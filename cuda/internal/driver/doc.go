// Package driver is what package cuda needs of the CUDA driver: devices,
// streams, events, memory, modules, launches, graphs, virtual memory and tensor
// maps. Its API exists only with the build tag cuda and cgo.
//
// Device, context, module, stream and event handles, and plain memory, are
// served by gorgonia.org/cu, which cu.go alone imports. The rest are calls of our
// own (calls.h), found in libcuda.so.1 when it is loaded, one call of cgo each:
// what cu lacks, and what is called in every step.
//
// Any goroutine may make any call: each makes the device's context current to
// the thread it runs on. Close of an object must not run beside other calls of
// it. Every error is an *Error, except that of Devices and Open where there is
// no driver, a *NoDriverError.
package driver
