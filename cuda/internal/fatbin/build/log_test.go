package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/cuda/internal/fatbin"
)

const log = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Function properties for b
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 59 registers, used 0 barriers, 1648 bytes cmem[0], 56 bytes cmem[2]
ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes smem
`

func TestParseLog(t *testing.T) {
	got, err := parseLog(log, "sm_80")
	want := []fatbin.Kernel{
		{Name: "a", Arch: "sm_80", Registers: 255, Shared: 48},
		{Name: "b", Arch: "sm_80", Registers: 59, Stack: 16, Spill: 20},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", strings.ReplaceAll(log, "Used", "Took"), strings.ReplaceAll(log, "spill", "split")} {
		if _, err := parseLog(bad, "sm_80"); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
	if err := report(&fatbin.Manifest{Source: "x.cu", Kernels: want}); err == nil || !strings.Contains(err.Error(), "b for sm_80") {
		t.Errorf("a spill gives %v", err)
	}
	if err := report(&fatbin.Manifest{Kernels: want[:1]}); err != nil {
		t.Error(err)
	}
}

func TestParameters(t *testing.T) {
	m := &fatbin.Manifest{Kernels: []fatbin.Kernel{{Name: "k"}}}
	ptx := ".visible .entry k(\n\t.param .align 8 .b8 k_param_0[256]\n)\n"
	if err := parameters([]byte(ptx), m); err != nil || m.Kernels[0].Params != 256 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", ".visible .entry k(\n\t.param .u64 k_param_0\n)\n", ptx + ".visible .entry l()\n"} {
		if err := parameters([]byte(bad), m); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}
