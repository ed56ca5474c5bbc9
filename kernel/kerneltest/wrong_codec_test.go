package kerneltest_test

import "github.com/longctx/longctx/kernel"

// sides changes how keys and values are taken to be coded.
func sides(f func(*kernel.Quantizer)) func(*kernel.Spec) error {
	return func(s *kernel.Spec) error {
		f(&s.Coding.Key)
		f(&s.Coding.Value)
		return nil
	}
}
