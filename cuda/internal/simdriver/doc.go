// Package simdriver is what tests ask of the simulated driver (cuda/sim/driver)
// beside the driver API. It exists only with the build tag cuda and cgo.
package simdriver
