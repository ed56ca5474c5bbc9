package cuda

import (
	"errors"
	"testing"
)

// A program that asks for CUDA must learn why it cannot have it, and be able to
// tell that from other errors.
func TestOpenSaysWhyNot(t *testing.T) {
	b, err := Open(0)
	if err == nil {
		t.Skip("there is a device")
	}
	var why *UnavailableError
	if b != nil || !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &why) || why.Reason == "" {
		t.Fatalf("Open = %v, %v, want no backend and an UnavailableError with a reason", b, err)
	}
}
