//go:build !amd64 || purego

package bf16

func runs(t Tier) bool { return t == Go }

const doubleRate = false

func product(*productArgs) {}

func attend(*attendArgs) {}

func pack(packing, *packArgs) {}
