// Package codec names ways to hold keys and values in fewer bits, and says what
// each makes of a kvcache.Config. What is computed is rules 12 to 14 of package
// kernel.
package codec
