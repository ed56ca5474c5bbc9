//go:build cuda && cgo

package cuda

// openEngine opens a device through the driver.
func openEngine(device int) (engine, error) {
	return nil, &UnavailableError{device, "this version of longctx does not speak to the driver yet; use package cpu"}
}
