package recurrence_test

import (
	"fmt"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/recurrence"
	"github.com/longctx/longctx/tensor"
)

// A prompt in one call, then tokens one at a time, from a state of fixed size.
func Example() {
	b := cpu.New(cpu.Options{})
	defer b.Close()
	layer, err := recurrence.New(b, recurrence.GatedDeltaNet{Normalize: true}, recurrence.Config{Heads: 4, KeyHeads: 2, KeyDim: 16, ValueDim: 32})
	if err != nil {
		fmt.Println(err)
		return
	}
	states, err := layer.NewStates(8)
	if err != nil {
		fmt.Println(err)
		return
	}
	slot, err := states.Alloc()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, tokens := range []int64{1000, 1, 1} {
		s := &recurrence.Step{
			Query: tensor.New(tensor.BF16, tokens, 2, 16), Key: tensor.New(tensor.BF16, tokens, 2, 16),
			Value: tensor.New(tensor.BF16, tokens, 4, 32), Out: tensor.New(tensor.BF16, tokens, 4, 32),
			Gate: tensor.New(tensor.F32, tokens, 4), Beta: tensor.New(tensor.F32, tokens, 4),
			QueryStart: []int32{0, int32(tokens)}, States: states, Slots: []int32{slot},
		}
		if err := layer.Run(s); err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Println(states.SlotBytes(), "bytes a sequence, whatever its length")
	// Output: 8224 bytes a sequence, whatever its length
}
