package backend

import (
	"errors"
	"strings"
	"testing"
)

// Whatever is linked, the CPU is there, and what cannot be had says why.
func TestOpen(t *testing.T) {
	for _, name := range []string{"", "cpu", "CPU"} {
		if b, err := Open(name); err != nil || b == nil {
			t.Errorf("Open(%q) = %v, %v, want a backend", name, b, err)
		}
	}
	all := All()
	if last := all[len(all)-1]; last.Name() != "cpu" {
		t.Errorf("the last of All is %s, want the fallback cpu", last.Name())
	}
	if b, err := Open("cuda"); err != nil && !errors.Is(err, errors.ErrUnsupported) || err == nil && b == nil {
		t.Errorf("Open(cuda) = %v, %v, want a backend or errors.ErrUnsupported", b, err)
	}
	if _, err := Open("tpu"); err == nil || !strings.Contains(err.Error(), "have cpu, cuda") {
		t.Errorf("Open(tpu): %v, want an error that names what there is", err)
	}
}
