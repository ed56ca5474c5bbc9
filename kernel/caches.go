package kernel

import (
	"fmt"

	"github.com/longctx/longctx/tensor"
)

// checkScales checks the scales of FP8 keys and values.
func checkScales(key, keyScale, value, valueScale *tensor.View, heads int64) error {
	if err := checkScale("KeyScale", key, keyScale, heads); err != nil {
		return err
	}
	return checkScale("ValueScale", value, valueScale, heads)
}

func checkScale(name string, rows, scale *tensor.View, heads int64) error {
	if scale.IsZero() && scale.Rank == 0 {
		return nil
	}
	if !rows.DType.Float8() {
		return &ValueError{name, scale.String(), fmt.Sprintf("no tensor: scales are for f8e4m3 and f8e5m2, not %v", rows.DType)}
	}
	return checkView(name, scale, tensor.F32, heads)
}

// checkCaches checks two tensors of pages of one shape but for the features,
// of types that keys and values are stored in.
func checkCaches(keyName string, key *tensor.View, valueName string, value *tensor.View) error {
	for _, c := range [...]struct {
		name  string
		cache *tensor.View
	}{{keyName, key}, {valueName, value}} {
		v := c.cache
		if err := checkView(c.name, v, v.DType, v.Shape[0], v.Shape[1], v.Shape[2], v.Shape[3]); err != nil {
			return err
		}
		if !stored(v.DType) {
			return &ShapeError{c.name, v.String(), "f32, f16, bf16, f8e4m3 or f8e5m2"}
		}
	}
	for d := range 3 {
		if key.Shape[d] != value.Shape[d] {
			return &ShapeError{valueName, value.String(), "pages, page size and heads of " + keyName + " " + key.String()}
		}
	}
	return nil
}

// wide reports whether d is a type that activations have.
func wide(d tensor.DType) bool { return d == tensor.F32 || d == tensor.F16 || d == tensor.BF16 }

// stored reports whether d is a type that plain keys and values have.
func stored(d tensor.DType) bool { return wide(d) || d.Float8() }
