package attention_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
)

// A length of 0 or below must not silently become another mask.
func TestMaskLengthsAreChecked(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	for name, m := range map[string]attention.Mask{
		"window 0":          attention.Window(0),
		"window -3":         attention.Window(-3),
		"largest window":    attention.Window(math.MaxInt),
		"chunks of 0":       attention.Chunked(0),
		"chunks of -1":      attention.Chunked(-1),
		"window 0 of sinks": attention.WindowSinks(0, 4),
		"-1 sinks":          attention.WindowSinks(4, -1),
		"no regions":        {},
	} {
		_, err := attention.New(b, attention.Config{Heads: 1, KVHeads: 1, HeadDim: 4, Mask: m})
		var config *attention.ConfigError
		if !errors.As(err, &config) || !strings.Contains(err.Error(), "Mask") {
			t.Errorf("%s: New = %v, want a ConfigError about the mask", name, err)
		}
	}
	for name, m := range map[string]attention.Mask{
		"no sinks": attention.WindowSinks(4, 0), "window 1": attention.Window(1), "chunks of 1": attention.Chunked(1),
	} {
		if _, err := attention.New(b, attention.Config{Heads: 1, KVHeads: 1, HeadDim: 4, Mask: m}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
