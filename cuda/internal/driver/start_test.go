//go:build cuda && cgo

package driver

import (
	"debug/elf"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// This test has started, which it would not have had libcuda been linked as
// other libraries are, on a machine without one.
func TestStartsWithoutADriver(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the libraries of an ELF file are looked at")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(libs, func(s string) bool { return strings.HasPrefix(s, "libcuda") }) {
		t.Errorf("%v are needed to start: link with the stub (make cuda-env)", libs)
	}
}

// Without a driver both entries say so, typed, and with the loader's reason.
func TestNoDriver(t *testing.T) {
	if start() == nil {
		t.Skip("there is a driver")
	}
	_, e1 := Devices()
	d, e2 := Open(0)
	if d != nil {
		t.Fatal("a device without a driver")
	}
	for _, err := range []error{e1, e2} {
		var none *NoDriverError
		if !errors.As(err, &none) || !strings.Contains(err.Error(), "libcuda.so.1") {
			t.Errorf("got %v, want a NoDriverError that names the library", err)
		}
	}
}
