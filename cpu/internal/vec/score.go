package vec

import "github.com/longctx/longctx/kernel"

// SoftCap sets x = T(x·inv)·limit, with T of package kernel.
func SoftCap(x []float32, inv, limit float32) {
	for i := softCap(x, inv, limit); i < len(x); i++ {
		x[i] = kernel.Tanh(x[i]*inv) * limit
	}
}

// AddProduct sets y = fma(a, b, y), element by element.
func AddProduct(p kernel.Policy, y, a, b []float32) {
	a, b = a[:len(y)], b[:len(y)]
	for i := addProduct(y, a, b); i < len(y); i++ {
		y[i] = FMA(p, a[i], b[i], y[i])
	}
}
