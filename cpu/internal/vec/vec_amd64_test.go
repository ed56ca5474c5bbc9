//go:build amd64 && !purego

package vec

import (
	"slices"
	"testing"

	"golang.org/x/sys/cpu"
)

// A machine that has the instructions must have the variant, and must run it.
func TestVariantsOfThisMachine(t *testing.T) {
	x := &cpu.X86
	for v, has := range map[Variant]bool{
		AVX2:   x.HasAVX2 && x.HasFMA && x.HasF16C,
		AVX512: x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasAVX2 && x.HasFMA && x.HasF16C,
		NEON:   false,
	} {
		if got := slices.Contains(Variants(), v); got != has {
			t.Errorf("variant %v: supported %v, want %v by the flags of the processor", v, got, has)
		}
	}
	before := Active()
	defer Use(before)
	for _, v := range Variants() {
		if _, err := Use(v); err != nil {
			t.Fatal(err)
		}
		x := make([]float32, 4096)
		c, a, b := Matrix{X: x[:1024], Row: 64}, Matrix{X: x[1024:], Row: 16, Col: 1}, Matrix{X: x[2048:], Row: 64}
		want := map[Variant]int{AVX2: 56, AVX512: 48}[v]
		if got := mulAdd(&c, &a, &b, 3, 5, 63, Zero, nil); got != want {
			t.Errorf("variant %v: %d of 63 columns in assembly, want %d", v, got, want)
		}
	}
}
