//go:build !amd64 || purego

package vec

func decays(w, e, q, k []float32, g []float64, rows, n, h, shift int) bool { return false }

func limitGates(x []float32) bool { return false }

func multiply(y, a, b []float32) bool { return false }
