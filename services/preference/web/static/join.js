"use strict";
// The door: the link's token stands behind the #, which browsers send to nobody. It leaves the address bar at once.
document.addEventListener("DOMContentLoaded", async () => {
  const says = document.getElementById("says");
  const token = location.hash.slice(1);
  history.replaceState(null, "", "/join");
  if (!token) return;
  says.textContent = "Signing in …";
  try {
    await window.trimtab.call("/api/sign-in", { token });
    location.replace("/");
  } catch (error) {
    says.textContent = error.status ? error.message : "The service cannot be reached. Open the link again in a moment.";
    says.setAttribute("role", "alert");
  }
});
