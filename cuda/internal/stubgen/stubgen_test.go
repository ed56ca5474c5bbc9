package stubgen

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write cuda/stub/calls.c and check.c")

const header = "../../include/cuda.h"

func TestStubIsFresh(t *testing.T) {
	h, err := os.ReadFile(header)
	if err != nil {
		t.Fatal(err)
	}
	for path, write := range map[string]func(string) (string, error){
		"../../stub/calls.c": Generate,
		"../../stub/check.c": Check,
	} {
		want, err := write(string(h))
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is not what the header gives (%v): run make generate", path, err)
		}
	}
}

// A declaration that the generator overlooks would be a symbol that the linker
// does not find, or worse, one found elsewhere.
func TestEveryDeclarationIsSeen(t *testing.T) {
	for _, h := range []string{
		"typedef enum { CUDA_SUCCESS } CUresult;\n",
		"typedef enum { CUDA_SUCCESS } CUresult;\nCUresult cuA(int);\nCUresult cuB(int,\n\tint);\n",
	} {
		if _, err := Generate(h); err == nil {
			t.Errorf("no error for %q", h)
		}
	}
	got, err := Generate("typedef enum { CUDA_SUCCESS } CUresult;\nCUresult cuA(void);\nCUresult cuB(void *, int);\nCUresult cuInit(unsigned int);\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CUresult cuA(void) {", "CUresult cuB(void *a0, int a1) {", "longctx_stub_calls[2];", "call(a0, a1)"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "cuInit") {
		t.Error("cuInit is load.c's")
	}
}
