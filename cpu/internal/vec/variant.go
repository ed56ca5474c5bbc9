package vec

import "fmt"

// Variant is a set of leaf loops.
type Variant uint8

// The variants, slowest first on a machine that has several.
const (
	Generic Variant = iota // Go
	NEON                   // arm64 Advanced SIMD
	AVX2                   // amd64 AVX2, FMA, F16C
	AVX512                 // amd64 AVX-512 F, BW, DQ, VL
)

func (v Variant) String() string {
	if int(v) < len(variantNames) {
		return variantNames[v]
	}
	return fmt.Sprintf("Variant(%d)", uint8(v))
}

var variantNames = [...]string{"generic", "neon", "avx2", "avx512"}

// active is the variant in use.
var active = best()

// Variants lists those that this machine can run, in the order of the constants.
func Variants() []Variant {
	var list []Variant
	for v := Generic; v <= AVX512; v++ {
		if supported(v) {
			list = append(list, v)
		}
	}
	return list
}

func best() Variant {
	list := Variants()
	return list[len(list)-1]
}

// Active is the variant in use.
func Active() Variant { return active }

// Use chooses a variant, and returns the one before. It must not be called
// while a kernel runs: it is there for tests and measurements.
func Use(v Variant) (Variant, error) {
	before := active
	if !supported(v) {
		return before, fmt.Errorf("vec: variant %v is not supported here: have %v", v, Variants())
	}
	active = v
	return before, nil
}
