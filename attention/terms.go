package attention

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
)

// NoLimit is the LongestLength of a position module whose rotated distances
// stay below the trained length however long the sequence is.
const NoLimit = math.MaxInt32

// nearFar divides all pairs at i−j = distance. Keys after the query are near.
func nearFar(distance int) (near, far kernel.Region) {
	near, far = kernel.Everywhere, kernel.Everywhere
	near.Diff.Hi = int32(distance)
	far.Diff.Lo = int32(distance)
	return near, far
}

// parameter checks a field of a module that becomes a bound of a Region.
func parameter(name string, got, least int) error {
	if got < least || got >= kernel.MaxBound {
		return fmt.Errorf("%s is %d, want %d to 2³¹−2", name, got, least)
	}
	return nil
}
