//go:build purego || !(amd64 || arm64)

package roof

func supported(v Variant) bool { return v == Generic }

func loopsOf(Variant) *loops { return &generic }
