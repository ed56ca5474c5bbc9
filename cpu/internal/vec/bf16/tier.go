package bf16

import "fmt"

// Tier is a set of instructions for products of BF16.
type Tier uint8

// The tiers. On a CPU with AMX that is the fastest; VDPBF16PS is worth taking
// where Profitable says so.
const (
	Go        Tier = iota // for tests: exact sums of products, slow
	VDPBF16PS             // AVX-512 BF16
	AMX                   // AMX-TILE and AMX-BF16
)

func (t Tier) String() string {
	if int(t) < len(tierNames) {
		return tierNames[t]
	}
	return fmt.Sprintf("Tier(%d)", uint8(t))
}

var tierNames = [...]string{"go", "vdpbf16ps", "amx"}

// active is the tier in use.
var active = best()

// Tiers lists those that this machine can run, in the order of the constants.
func Tiers() []Tier {
	var list []Tier
	for t := Go; t <= AMX; t++ {
		if runs(t) {
			list = append(list, t)
		}
	}
	return list
}

func best() Tier {
	list := Tiers()
	return list[len(list)-1]
}

// Active is the tier in use.
func Active() Tier { return active }

// Supported reports whether the active tier is faster than float32 products on
// this CPU. VDPBF16PS has twice their rate on AMD's CPUs since Zen 4, and half
// of it on Intel's since Sapphire Rapids: those have AMX instead.
func Supported() bool { return active == AMX || active == VDPBF16PS && doubleRate() }

// Use chooses a tier, and returns the one before. It must not be called while a
// kernel runs: it is there for tests and measurements.
func Use(t Tier) (Tier, error) {
	before := active
	if !runs(t) {
		return before, fmt.Errorf("bf16: tier %v is not supported here: have %v", t, Tiers())
	}
	active = t
	return before, nil
}
