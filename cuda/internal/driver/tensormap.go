//go:build cuda && cgo

package driver

// #include "calls.h"
import "C"

import "fmt"

// TensorMap describes a tensor to the engine that copies tiles. A kernel takes
// it in its parameter, at a multiple of 64 bytes there.
type TensorMap [128]byte

// Element types of a TensorMap: CUtensorMapDataType.
const (
	MapUint8    = 0
	MapUint16   = 1
	MapFloat16  = 6
	MapFloat32  = 7
	MapBFloat16 = 9
)

// Swizzles of a TensorMap: how the 16-byte parts of a row of a tile lie in shared
// memory.
const (
	SwizzleNone = 0
	Swizzle32   = 1
	Swizzle64   = 2
	Swizzle128  = 3
)

// Tile describes a tensor and the box that is copied at a time, innermost
// dimension first.
type Tile struct {
	Type    int
	Address Ptr
	Dims    []uint64 // 1 to 5
	Strides []uint64 // in bytes, of all dimensions but the innermost
	Box     []uint32 // of each dimension, at most 256
	Swizzle int
	NaN     bool // outside the tensor elements are NaN, not 0
}

// EncodeTile makes the map of a tensor. It needs no device.
func EncodeTile(t Tile) (TensorMap, error) {
	var m TensorMap
	const call = "cuTensorMapEncodeTiled"
	rank := len(t.Dims)
	if rank < 1 || rank > 5 || len(t.Strides) != rank-1 || len(t.Box) != rank {
		return m, refuse(call, "%d dimensions, %d strides and a box of %d, want 1 to 5, one less, as many", rank, len(t.Strides), len(t.Box))
	}
	if err := start(); err != nil {
		return m, err
	}
	strides := append([]uint64{}, t.Strides...)
	if rank == 1 {
		strides = []uint64{0} // not read
	}
	steps := make([]uint32, rank)
	for i := range steps {
		steps[i] = 1
	}
	fill := C.int(0)
	if t.NaN {
		fill = 1
	}
	const promote256 = 3 // to L2, in lines of 256 bytes
	c := C.lc_tensor_map_tiled(ptr(&m), C.int(t.Type), C.uint32_t(rank), C.uint64_t(t.Address),
		(*C.uint64_t)(&t.Dims[0]), (*C.uint64_t)(&strides[0]), (*C.uint32_t)(&t.Box[0]), (*C.uint32_t)(&steps[0]),
		0, C.int(t.Swizzle), promote256, fill)
	if c != 0 {
		return TensorMap{}, newError(call, Code(c), "", fmt.Sprintf("type %d, dimensions %v, strides %v, box %v, swizzle %d", t.Type, t.Dims, t.Strides, t.Box, t.Swizzle))
	}
	return m, nil
}

func ptr(m *TensorMap) handle { return handle(m) }
