// Package recurrence has layers whose state does not grow with the context:
// linear attention and its gated and delta-rule kin. Each technique is a small
// struct in a file of its own, chosen in a line,
//
//	layer, err := recurrence.New(backend, recurrence.GatedDeltaNet{}, recurrence.Config{Heads: 32, KeyHeads: 16, KeyDim: 128, ValueDim: 128})
//	states, err := layer.NewStates(64)           // beside the pages of the model's other layers
//	slot, err := states.Alloc()
//	err = layer.Run(&recurrence.Step{…, States: states, Slots: []int32{slot}})
//
// and lowers to the Scan of package kernel. Run takes any number of tokens of any
// number of sequences: a token at a time is the recurrent form, many are the
// chunk form, and both leave the same state, up to rounding; bit for bit where a
// sequence is cut at multiples of kernel.TileSize tokens.
//
// The cost of a token and head is given in FLOPs of products, with state
// P = KeyDim·ValueDim and C = kernel.TileSize: plain and gated recurrences take
// 4·P + C·(KeyDim + ValueDim), the delta rule 6·P + 2·C·(KeyDim + ValueDim), and
// the state is read and written once a chunk: 8·P bytes a token in decode.
//
// States are in the backend's memory; the tensors of a Step may be there or in the
// host's. What a technique computes beside its scans (lengths, exponentials, norms)
// the host computes, from copies where the tensors are on a device: there
// SimpleGLA, GLA, RWKV6, RetNet, Lightning, and Linear, DeltaNet and GatedDeltaNet
// without their options are the fast ones. Backward is for backends in host memory.
package recurrence
