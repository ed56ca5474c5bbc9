package bf16

import (
	"fmt"
	"sync"
)

// Tier is a set of instructions for products of BF16.
type Tier uint8

// The tiers, slowest first. Whether one is worth taking, Supported says.
const (
	Go        Tier = iota // the specification: sums in float64, rounded once; slow
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

// active is the tier in use, once it was chosen: see current.
var (
	active Tier
	choose sync.Once
)

// current chooses the tier at the first use, and not when the program starts: to
// ask for tiles makes every signal frame of the process larger.
func current() Tier {
	choose.Do(func() { active = best() })
	return active
}

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
func Active() Tier { return current() }

// Supported reports whether the active tier is faster than float32 products on
// this CPU, for keys and queries in so many parts. AMX is. VDPBF16PS has twice
// the rate of float32 on AMD's CPUs, since Zen 4, which pays while nothing is
// split; on Intel's since Sapphire Rapids, which have AMX, it has half of it.
func Supported(keyParts, queryParts int) bool {
	t := current()
	return t == AMX || t == VDPBF16PS && doubleRate && keyParts == 1 && queryParts == 1
}

// Use chooses a tier, and returns the one before. It must not be called while a
// kernel runs: it is there for tests and measurements.
func Use(t Tier) (Tier, error) {
	before := current()
	if !runs(t) {
		return before, fmt.Errorf("bf16: tier %v is not supported here: have %v", t, Tiers())
	}
	active = t
	return before, nil
}
