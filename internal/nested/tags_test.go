//go:build !cpu

package nested

var tags []string
